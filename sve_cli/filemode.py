"""Files as the user's other files are: safetensors writes them for their owner alone, and tells of a full disk in its own way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends without an error, and vanishes otherwise.

    Raises:
        OSError: the disk refuses, also where safetensors says so.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        as_usual(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise _of_the_disk(error, path) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _of_the_disk(error: SafetensorError, path: Path) -> Exception:
    """The OSError that safetensors tells in words, so that it is known as one; any other error as it is."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return error if number is None else OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def as_usual(path: Path) -> None:
    """Give a file that was just written the mode that a new file has here."""
    fresh = path.with_name(f".{path.name}.mode")
    fresh.touch(mode=0o666)
    mode = fresh.stat().st_mode
    fresh.unlink()
    path.chmod(mode)
