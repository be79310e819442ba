"""Small runs of the embedded digits, and real processes of the command line that cost no import of torch each."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from sve_cli import cli
from tests.workflows.bench_command import BENCH

# Imports everything once, then forks one process for each request: each is a `sve` of its own, with its own signals.
SERVER = """
import json, os, signal, sys
import timm, torch, transformers, sve_cli.workflows.train, sve_cli.workflows.export, sve_cli.cli as cli
torch.set_num_threads(1)
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(request["env"])
        for name, fd in (("out", 1), ("err", 2)):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        sys.argv = ["sve", *request["arguments"]]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it
        code = 99
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(json.dumps({"pid": child}), flush=True)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
"""
TINY = ["train.epochs=1", "train.batch_size=16", "train.precision=float32", "evaluate.bootstrap=50", "method.members=2"]


class Process:
    """A running command."""

    def __init__(self, server: subprocess.Popen[str], pid: int, err: Path) -> None:
        self.server, self.pid, self.err = server, pid, err

    def wait(self) -> int:
        """The exit code; minus the signal's number where one ended it."""
        assert self.server.stdout is not None
        return int(json.loads(self.server.stdout.readline())["code"])

    def at_step(self, run: Path, step: int, number: int) -> int:
        """Send a signal once the run's checkpoint has reached `step`; the step it had then."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            done = checkpointed(run)
            if done >= step:
                os.kill(self.pid, number)
                return done
            time.sleep(0.002)
        raise AssertionError(f"the run never reached step {step}: {self.err.read_text(encoding='utf-8')}")


class Sve:
    """The command line, in this process (`run`) or in one of its own (`start`)."""

    def __init__(self, server: Callable[[], subprocess.Popen[str]], capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._server, self.capsys, self.folder = server, capsys, folder
        self.out = self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run a command, check its exit code, and return its stdout."""
        self.capsys.readouterr()
        found = cli.run([str(a) for a in arguments])
        self.out, self.err = self.capsys.readouterr()
        assert found == code, f"exit code {found}, not {code}\n{self.err}"
        assert "Traceback" not in self.err
        return self.out

    def check_refuses(self, *arguments: object, saying: str) -> None:
        """Run a command that ends with exit code 2 and a sentence, data nowhere."""
        self(*arguments, code=2)
        assert saying in self.err, self.err
        assert self.out == ""

    def json(self, *arguments: object) -> Any:
        """Run a command with --json; its one document."""
        return json.loads(self(*arguments, "--json"))

    def start(self, *arguments: object) -> Process:
        """Start a command in a process of its own."""
        server = self._server()
        assert server.stdin is not None and server.stdout is not None
        err = self.folder / "process.err"
        names = ("SVE_CACHE_DIR", "SVE_RUNS_DIR", "HF_HUB_OFFLINE")
        request = {
            "arguments": [str(a) for a in arguments], "env": {n: os.environ[n] for n in names if n in os.environ},
            "out": str(self.folder / "process.out"), "err": str(err),
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return Process(server, int(json.loads(server.stdout.readline())["pid"]), err)

    @staticmethod
    def digests(folder: Path) -> dict[str, str]:
        """Every file below a folder with the hash of its bytes."""
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}

    @staticmethod
    def same_training(a: Path, b: Path) -> None:
        """Two runs ended with the same bits and the same history, seconds aside."""
        # Hashes, not bytes: pytest would spend minutes on explaining a difference of megabytes.
        states = [hashlib.sha256((run / "ensemble.safetensors").read_bytes()).hexdigest() for run in (a, b)]
        assert states[0] == states[1]
        histories = [[json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] for run in (a, b)]
        for record in (r for history in histories for r in history):
            del record["seconds"]
        assert histories[0] == histories[1]


def checkpointed(run: Path) -> int:
    """Optimiser steps that the run's checkpoint holds; 0 without one."""
    path = run / "checkpoints" / "latest.safetensors"
    try:
        with safe_open(path, framework="numpy") as f:
            return int(json.loads(f.metadata()["meta"])["done_steps"])
    except (FileNotFoundError, SafetensorError):
        return 0


@pytest.fixture(scope="session")
def server() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """The forking process, started when first asked for."""
    started: list[subprocess.Popen[str]] = []

    def get() -> subprocess.Popen[str]:
        if not started:
            pipe = subprocess.PIPE
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            started.append(subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, env=environment))
        return started[0]

    yield get
    for process in started:
        process.communicate()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One factor store for the session: the digits' ViT is decomposed once."""
    return tmp_path_factory.mktemp("factors")


@pytest.fixture
def sve(
    server: Callable[[], subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Sve:
    """The command line, in an empty folder, offline."""
    monkeypatch.setenv("SVE_CACHE_DIR", str(shared_cache))
    monkeypatch.setenv("SVE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SVE_DEBUG", "0")
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow terminal would cut tables
    monkeypatch.delenv("SVE_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return Sve(server, capsys, tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished run of two members on 48 digits. Read only: copy it before changing it."""
    run = tmp_path_factory.mktemp("trained") / "runs" / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVE_CACHE_DIR", str(shared_cache))
        assert cli.run(["train", "quickstart", *TINY, "--limit", "48", "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def benched(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished benchmark: results in `out`, runs in `runs`. Read only."""
    folder = tmp_path_factory.mktemp("benched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVE_CACHE_DIR", str(shared_cache))
        patch.setenv("SVE_RUNS_DIR", str(folder / "runs"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("SVE_DATA_DIR", raising=False)
        patch.setattr("sys.argv", ["sve", *BENCH, "--out", str(folder / "out")])
        assert cli.run([*BENCH, "--out", str(folder / "out")]) == 0
    return folder
