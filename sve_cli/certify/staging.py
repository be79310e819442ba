"""Where artifacts lie before they are proven: a hidden folder whose artifacts nothing opens once this process is dead.

Every artifact has an entry, the one file without which no loader opens it (`Target.entry`). Until the artifact is proven its entry
is a link into `/proc/<this process>/fd`, to an open file beside it: this process and those it starts read and write it under its
name, and a kill, whenever it comes, takes the name away. Where there is no /proc, the entry is a plain file from the start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sve_cli.errors import SveError

STAGING = ".sve-export-"
OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def held_entries(staging: Path, entries: Mapping[str, str]) -> Iterator[Callable[[str], None]]:
    """Make the artifacts' folders with their entries held -> release(folder's name), which makes the entry a plain file.

    Args:
        entries: name of a folder -> name of its entry.
    """
    held: dict[str, tuple[int, Path, Path]] = {}

    def release(name: str) -> None:
        if name in held:
            _, file, link = held[name]
            if link.is_symlink():  # a library that replaces files has made it a plain one already
                os.replace(file, link)

    try:
        for i, (name, entry) in enumerate(entries.items()):
            link, file = staging / name / entry, staging / f"held-{i}"
            link.parent.mkdir(parents=True)
            if OPEN_FILES.is_dir():
                held[name] = (number := os.open(file, os.O_RDWR | os.O_CREAT, 0o666), file, link)
                link.symlink_to(f"/proc/{os.getpid()}/fd/{number}")
        yield release
    finally:
        for number, _, _ in held.values():
            os.close(number)


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A hidden folder inside `out`, removed at the end; leftovers of killed exports are removed at the start.

    Raises:
        SveError: the disk refuses.
    """
    staging, fresh = out / f"{STAGING}{os.getpid()}", not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(f"{STAGING}*"):
            if not _alive(leftover.name.removeprefix(STAGING)):
                shutil.rmtree(leftover)
        staging.mkdir()
        yield staging
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SveError(f"Cannot export to '{out}' ({reason}).", "Check the disk, or choose another --out.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _alive(pid: str) -> bool:
    """Whether another process of this number runs here; a leftover of our own number is nobody's."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
