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
from typing import Any

from sve_cli.errors import DivergenceError, SveError
from sve_cli.recipe import LoadedRecipe
from sve_cli.workflows.session import Log

PRELOAD = ["torch", "timm", "transformers", "sve_cli.workflows.train"]


@dataclass(frozen=True)
class Job:
    """What the process does: `kind` 'train' (a run in `folder`) or 'search' (validation NLL only)."""

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
    exit_code: int
    diverged: bool


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


_LIVE: set[Any] = set()  # processes at work, for `stop_jobs`


def stop_jobs() -> None:
    """End every process at work, so that the threads that wait for them end too. What they did can be resumed."""
    for process in list(_LIVE):
        process.kill()


def run_job(job: Job, log: Log, label: str) -> dict[str, Any]:
    """Run a job in a fresh process and return what it found; what it says goes to `log`, with `label` before it.

    Raises:
        DivergenceError: training diverged.
        SveError: the job was refused, or its process died.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    answer, theirs = context.Pipe(duplex=False)
    watched, alive = context.Pipe(duplex=False)  # nothing is ever sent: it closes when this process dies
    process = context.Process(target=_work, args=(job, theirs, watched), daemon=True)
    process.start()
    _LIVE.add(process)
    theirs.close()
    watched.close()
    try:
        while isinstance(found := answer.recv(), Line):
            (log.warn if found.warning else log.say)(f"[{label}] {found.text}")
    except EOFError as error:
        process.join()
        raise SveError(
            f"The process of '{label}' died (exit code {process.exitcode}).", "It may have run out of memory: see above."
        ) from error
    finally:
        _LIVE.discard(process)
        alive.close()
        answer.close()
    process.join()
    if isinstance(found, Refused):
        kind = DivergenceError if found.diverged else SveError
        raise kind(found.message, found.hint)
    return dict(found)


def _work(job: Job, answer: Connection, watched: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with, args=(watched,), daemon=True).start()
    import torch

    torch.set_num_threads(job.threads)
    try:
        answer.send(_train(job, _PipeLog(answer)) if job.kind == "train" else _search(job, _PipeLog(answer)))
    except SveError as error:
        answer.send(Refused(error.message, error.hint, error.exit_code, isinstance(error, DivergenceError)))
    answer.close()


def _die_with(watched: Connection) -> None:
    try:
        watched.recv()
    except EOFError:
        os._exit(143)  # the benchmark is gone, whatever happened to it; the run can be resumed


def _train(job: Job, log: Log) -> dict[str, Any]:
    """Train, or go on with what an earlier process left; a finished run is only read."""
    from sve_cli.report import Report
    from sve_cli.rundir import RunDir, read_json
    from sve_cli.workflows.train import LATEST, train

    run = RunDir(job.folder)
    if not run.complete:
        begun = (job.folder / "checkpoints" / LATEST).is_file()
        resume = RunDir.open(job.folder) if begun else None
        out = None if begun else job.folder
        train(job.loaded, log, out=out, resume=resume, limit=job.limit, overwrite=True, command=job.command)
    report = Report.load(run.evaluations()[-1] / "report.json")  # the first one made
    lock = read_json(run.path / "recipe.lock.json")
    values = {k: v.value for k, v in report.addresses().items() if not k.startswith("members.")}
    rows = {"test": report.n, "validation": _rows(run, "validation")}
    return {
        "metrics": values, "parameters": report.parameters, "training": read_json(run.path / "training.json"),
        "warnings": report.warnings, "environment": lock["environment"], "rows": rows,
    }  # fmt: skip


def _rows(run: Any, split: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(run.evaluations()[-1] / "predictions" / f"{split}.parquet").num_rows)


def _search(job: Job, log: Log) -> dict[str, Any]:
    from sve_cli.workflows.train import train_only

    nll, seconds = train_only(job.loaded, log, job.limit)
    return {"validation_nll": nll, "seconds": seconds}
