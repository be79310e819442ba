"""One cell in a process of its own: its memory is its own, a crash costs one cell, and it dies with the benchmark."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sve_cli.errors import DivergenceError, SveError
from sve_cli.recipe import LoadedRecipe
from sve_cli.workflows.session import Log

if TYPE_CHECKING:
    from sve_cli.rundir import RunDir

PRELOAD = ["torch", "timm", "transformers", "sve_cli.workflows.train"]
SMALLER = "Lower --jobs, train.batch_size and evaluate.batch_size, or raise train.accumulation."


@dataclass(frozen=True)
class Job:
    """What the process does in `folder`: `kind` 'train' (a whole run) or 'search' (as far as its validation NLL)."""

    kind: str
    loaded: LoadedRecipe
    folder: Path
    limit: int | None
    threads: int
    command: str


@dataclass(frozen=True)
class Refused:
    """An error for the user, on its way from the process."""

    message: str
    hint: str
    diverged: bool = False


@dataclass(frozen=True)
class Line:
    """A line of talk on its way from the process."""

    text: str
    warning: bool = False


class _PipeLog:
    """The process's log: lines go to the benchmark, which says whose they are."""

    def __init__(self, answer: Connection) -> None:
        self.answer = answer

    def say(self, text: str) -> None:
        self.answer.send(Line(text))

    def warn(self, text: str) -> None:
        self.answer.send(Line(text, warning=True))

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Callable[..., None]]:
        """Epochs are lines of their own."""
        yield lambda n=1, text="": None


class Crew:
    """The processes that are at work for a benchmark, and what they say.

    A note about the data that all runs make is shown once.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self._lock = threading.Lock()
        self._live: set[Any] = set()
        self._said: set[str] = set()
        self._stopped = False

    def stop(self) -> None:
        """End every process at work, so that the threads that wait for them end too. What they did can be resumed."""
        with self._lock:
            self._stopped = True
            for process in self._live:
                process.kill()

    def run(self, job: Job, label: str) -> dict[str, Any]:
        """Run a job in a fresh process and return what it found; what it says goes to the log, with `label` before it.

        Raises:
            DivergenceError: training diverged.
            SveError: the job was refused, its process was ended from outside, or the crew was stopped.
            RuntimeError: the job crashed, which is our bug; its traceback is on stderr.
        """
        context = _context()
        answer, theirs = context.Pipe(duplex=False)
        watched, alive = context.Pipe(duplex=False)  # nothing is ever sent: it closes when this process dies
        process = context.Process(target=_work, args=(job, Path.cwd(), dict(os.environ), theirs, watched), daemon=True)
        process.start()
        theirs.close()
        watched.close()
        found = None
        try:
            with self._lock:
                if self._stopped:
                    raise SveError("The benchmark was stopped.")
                self._live.add(process)
            while isinstance(found := answer.recv(), Line):
                self._hear(found, label)
        except EOFError as error:
            process.join()
            raise _died(label, process.exitcode) from error
        finally:
            if found is None or isinstance(found, Line):  # Ctrl-C, or stopped
                process.kill()
            process.join()
            with self._lock:
                self._live.discard(process)
            alive.close()
            answer.close()
        if isinstance(found, Refused):
            kind = DivergenceError if found.diverged else SveError
            raise kind(f"'{label}' failed: {found.message}", found.hint)
        return dict(found)

    def _hear(self, line: Line, label: str) -> None:
        with self._lock:
            known = line.text in self._said
            self._said.add(line.text)
        if line.text.startswith("epoch ") or not known:
            (self.log.warn if line.warning else self.log.say)(f"[{label}] {line.text}")


def _context() -> Any:
    """Processes forked from one that has the libraries loaded, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _died(label: str, code: int | None) -> Exception:
    """What to say of a process that ended without an answer: 1 is Python's own code for a traceback."""
    if code == 1:
        return RuntimeError(f"The process of '{label}' crashed; its traceback is above.")
    signalled = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return SveError(
        f"The process of '{label}' was ended from outside ({signalled}).", f"It may have needed too much memory. {SMALLER}"
    )


def _work(job: Job, here: Path, environment: dict[str, str], answer: Connection, watched: Connection) -> None:
    os.chdir(here)  # the process this one is forked from may be older than both
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with, args=(watched,), daemon=True).start()
    import torch

    torch.set_num_threads(job.threads)
    try:
        answer.send(_train(job, _PipeLog(answer)) if job.kind == "train" else _search(job, _PipeLog(answer)))
    except SveError as error:
        answer.send(Refused(error.message, error.hint, isinstance(error, DivergenceError)))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        answer.send(Refused("There is not enough memory.", SMALLER))
    answer.close()


def _die_with(watched: Connection) -> None:
    try:
        watched.recv()
    except EOFError:
        os._exit(143)  # the benchmark is gone, whatever happened to it; the run can be resumed


def _train(job: Job, log: Log) -> dict[str, Any]:
    """Train, or go on with what an earlier process left; a finished run is only read."""
    from sve_cli.benchmark import SPLITS
    from sve_cli.report import Report
    from sve_cli.rundir import RunDir, read_json
    from sve_cli.workflows.train import train

    run = RunDir(job.folder)
    if not run.complete:
        resume = _begun(job.folder)
        out = None if resume else job.folder
        train(job.loaded, log, out=out, resume=resume, limit=job.limit, overwrite=True, command=job.command)
    report = Report.load(run.evaluations()[-1] / "report.json")  # the first one made
    lock = read_json(run.path / "recipe.lock.json")
    values = {k: v.value for k, v in report.addresses().items() if not k.startswith("members.")}
    rows = {"test": report.n, "validation": _rows(run, "validation")}
    return {
        "metrics": values, "parameters": report.parameters, "training": read_json(run.path / "training.json"),
        "warnings": report.warnings, "environment": lock["environment"], "rows": rows,
        "sources": {"checkpoint": lock["checkpoint"]} | {k: lock["data"][k] for k in SPLITS if k in lock["data"]},
    }  # fmt: skip


def _begun(folder: Path) -> RunDir | None:
    """The run that an earlier process left there with anything to go on from."""
    from sve_cli.rundir import RunDir
    from sve_cli.workflows.train import LATEST, TRAINED

    for leftover in folder.glob(".*.tmp*"):  # of a process killed before there was a run
        leftover.unlink()
    begun = (folder / TRAINED).is_file() or (folder / "checkpoints" / LATEST).is_file()
    return RunDir.open(folder) if begun else None


def _rows(run: Any, split: str) -> int:
    import pyarrow.parquet as pq

    with (run.evaluations()[-1] / "predictions" / f"{split}.parquet").open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def _search(job: Job, log: Log) -> dict[str, Any]:
    from sve_cli.workflows.train import train_only

    nll, seconds = train_only(job.loaded, log, job.folder, resume=_begun(job.folder), limit=job.limit, command=job.command)
    return {"validation_nll": nll, "seconds": seconds}
