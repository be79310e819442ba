"""One run = one folder. Everything is written to a temporary name first and renamed; COMPLETE is written last.

runs/<recipe>-<UTC time>-<digest8>/: recipe.yaml, recipe.lock.json, ensemble.safetensors, history.jsonl, checkpoints/,
evaluations/<digest>/, COMPLETE (sha256 of what it covers).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sve_cli.errors import SveError
from sve_cli.filemode import as_usual

COMPLETE = "COMPLETE"
LOCK = ".lock"  # stays, so that all processes lock the same file
EVALUATING = ".evaluating.lock"  # of a run's evaluations
RECIPE, INPUTS = "recipe.yaml", "recipe.lock.json"
# What the commands write into a run's folder: with anything else in it, it is not removed.
ENTRIES = {
    RECIPE, INPUTS, "ensemble.safetensors", "history.jsonl", "training.json", COMPLETE, LOCK, EVALUATING,
    "checkpoints", "evaluations", "exports", "shift", "diversity", "distilled",
}  # fmt: skip


def runs_root(out: Path | None = None) -> Path:
    """Where runs live: `out`, else $SVE_RUNS_DIR, else ./runs."""
    return out or Path(os.path.expanduser(os.environ.get("SVE_RUNS_DIR") or "runs"))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        SveError: it cannot be written (disk full, no permission).
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends without an error, and vanishes otherwise.

    Raises:
        SveError: the path is a folder's, or the disk refuses.
    """
    if not path.name or os.path.isdir(path):
        raise SveError(f"'{path}' is a folder, and a file is to be written.", "Name a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        as_usual(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise SveError(
            f"Cannot write '{path}' ({getattr(error, 'strerror', None) or error}).",
            "Check the disk and the permissions, or choose another place.",
        ) from error
    finally:
        if temporary.exists():  # unlink itself would fail where a parent is no folder
            temporary.unlink()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically."""
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, hint: str = "") -> Any:
    """Read a JSON document.

    Args:
        hint: what to do where it cannot be read.

    Raises:
        SveError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SveError(f"Cannot read '{path}' ({error}).", hint) from error


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def seal(folder: Path, names: list[str]) -> None:
    """Write COMPLETE: when, and the digests of these files, which never change again."""
    write_json(folder / COMPLETE, {"files": {name: file_digest(folder / name) for name in names}, "at_ns": time.time_ns()})


def is_complete(folder: Path) -> bool:
    """Whether the folder was finished."""
    return (folder / COMPLETE).is_file()


def how_to_finish(folder: Path) -> str:
    """The command that finishes an unfinished run: transfers cannot be resumed."""
    path = folder / "recipe.lock.json"
    lock = read_json(path) if path.is_file() else {}
    if "transferred_from" not in lock:
        return f"Finish it with: sve train --resume {shlex.quote(str(folder))}"
    limit = "" if lock["limit"] is None else f" --limit {lock['limit']}"
    return f"Start it again with: sve transfer {lock['transferred_from']['run']} {folder / 'recipe.yaml'}{limit} --out NEW_FOLDER"


def check_seal(folder: Path) -> None:
    """Compare a finished folder with its COMPLETE.

    Raises:
        SveError: not finished, or a file is missing or changed.
    """
    if not is_complete(folder):
        raise SveError(f"'{folder}' is not complete.", how_to_finish(folder))
    for name, digest in read_json(folder / COMPLETE)["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise SveError(f"'{path}' is missing or was changed after the run.", "Train again, or restore the file.")


@contextmanager
def only_process(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which stays when it is free again: removed, two processes could each hold one of that name.

    Raises:
        SveError: another process holds it (`refusal`), or it cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise SveError(refusal, "Wait for it, or stop it first.") from error
    except OSError as error:
        raise SveError(f"Cannot write '{path}' ({error.strerror}).", "Choose another folder with --out.") from error
    try:
        yield
    finally:
        lock.release()


def _is_temporary(path: Path) -> bool:
    """Whether `atomic_path` of a killed process left it."""
    return path.name.startswith(".") and ".tmp" in path.name


def require_writable(folder: Path) -> None:
    """Check that files can be written in a folder, which need not be there, without touching anything.

    Raises:
        SveError: they cannot.
    """
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "it cannot be written to" if above.is_dir() else "it is not a folder"
        raise SveError(f"Cannot create '{folder}': '{above}' is in the way, {reason}.", "Choose another folder with --out.")


def _not_created(path: Path, error: OSError) -> SveError:
    return SveError(f"Cannot create '{path}' ({error.strerror}).", "Choose another folder with --out.")


@dataclass(frozen=True)
class RunDir:
    """A run's folder."""

    path: Path

    @staticmethod
    @contextmanager
    def begin(root: Path, name: str, digest: str, exact: bool = False, overwrite: bool = False) -> Iterator[RunDir]:
        """A new folder, held as by `only_writer` until the block ends. `exact`: `root` itself is the run's folder (--out).

        `overwrite`: a run that is there is removed, once no other process works on it.

        Raises:
            SveError: the folder exists and is not empty, or another process holds it.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        run = RunDir(root if exact else root / f"{name}-{stamp}-{digest[:8]}")
        RunDir.require_free(run.path, overwrite)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_created(run.path, error) from error
        with run.only_writer():
            RunDir.require_free(run.path, overwrite)  # another process may have been faster
            try:
                for entry in [p for p in run.path.iterdir() if p.name != LOCK]:
                    (shutil.rmtree if entry.is_dir() and not entry.is_symlink() else os.unlink)(entry)
            except OSError as error:
                raise _not_created(run.path, error) from error
            yield run

    @staticmethod
    def require_free(path: Path, overwrite: bool = False) -> None:
        """Check that a run can be made at `path`, without touching anything.

        Raises:
            SveError: something is there already, or the place cannot be written to.
        """
        if path.exists() and (not path.is_dir() or any(p.name != LOCK for p in path.iterdir())):
            if not overwrite:
                raise SveError(
                    f"'{path}' exists and is not empty.",
                    "Choose another --out, or use --overwrite. A training that was stopped goes on with: sve train --resume",
                )
            if not (path / INPUTS).is_file():
                raise SveError(f"'{path}' is not a run, so it is not overwritten.", "Choose another --out.")
            foreign = [p for p in sorted(path.iterdir()) if p.name not in ENTRIES and not _is_temporary(p)]
            if foreign:
                hint = "Move it away, or choose another --out."
                raise SveError(f"'{foreign[0]}' is no file of a run, so '{path}' is not overwritten.", hint)
        require_writable(path)

    @staticmethod
    def open(path: Path) -> RunDir:
        """An existing run's folder, finished or not.

        Raises:
            SveError: there is no run.
        """
        if not (path / "recipe.yaml").is_file():
            raise SveError(f"There is no run at '{path}'.", "Name the folder that `sve train` printed.")
        return RunDir(path)

    @staticmethod
    def given(path: Path | None) -> RunDir:
        """The named run, else the newest finished one.

        Raises:
            SveError: there is none.
        """
        return RunDir.open(path) if path is not None else RunDir.newest(runs_root())

    @staticmethod
    def newest(root: Path, complete: bool = True) -> RunDir:
        """The newest run below `root` (by creation), finished unless `complete` is False.

        Raises:
            SveError: there is none.
        """
        found = [p.parent for p in root.glob("*/recipe.yaml") if not complete or is_complete(p.parent)] if root.is_dir() else []
        if not complete:
            found = [p for p in found if not is_complete(p)]
        if not found:
            kind = "complete" if complete else "unfinished"
            raise SveError(f"There is no {kind} run in '{root}'.", "Train one with: sve train RECIPE")
        return RunDir(max(found, key=lambda p: (p / "recipe.yaml").stat().st_mtime_ns))

    @contextmanager
    def only_writer(self) -> Iterator[RunDir]:
        """Hold the run: a second process that wants to train it is refused.

        Raises:
            SveError: another process holds it.
        """
        with only_process(self.path / LOCK, f"Another process is training '{self.path}'."):
            yield self

    @property
    def complete(self) -> bool:
        """Whether the run was finished."""
        return is_complete(self.path)

    @property
    def history_path(self) -> Path:
        return self.path / "history.jsonl"

    def history(self) -> list[dict[str, Any]]:
        """One dict per line of history.jsonl."""
        if not self.history_path.is_file():
            return []
        lines = [line for line in self.history_path.read_text(encoding="utf-8").splitlines(keepends=True) if line.strip()]
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # torn by a kill; the resumed run writes it again
        return [json.loads(line) for line in lines]

    def evaluations(self) -> list[Path]:
        """Finished evaluations, newest first."""
        return sorted((p.parent for p in self.path.glob(f"evaluations/*/{COMPLETE}")), key=_sealed_at, reverse=True)


def _sealed_at(folder: Path) -> int:
    """When a folder was finished: a copy's files may have other times. Earlier versions did not write it down.

    Raises:
        SveError: its COMPLETE is damaged.
    """
    return int(read_json(folder / COMPLETE).get("at_ns") or (folder / COMPLETE).stat().st_mtime_ns)
