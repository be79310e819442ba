"""`sve bench` end to end on a tiny network: numbers, resuming, refusals, failures, several at once."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sve_cli import cli
from sve_cli.benchmark import load_cells, load_diverged, load_grids
from sve_cli.errors import SveError
from sve_cli.report import Report
from sve_cli.rundir import LOCK, RunDir
from sve_cli.workflows.bench import KEPT, held
from sve_cli.workflows.bench_worker import Crew, Job
from tests.workflows.bench_command import BENCH, LIMIT, SETTINGS


@pytest.fixture
def repeat(benched: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that made `benched`, to be given again."""
    monkeypatch.setenv("SVE_RUNS_DIR", str(benched / "runs"))
    monkeypatch.setattr("sys.argv", ["sve", *BENCH, "--out", str(benched / "out")])
    return [*BENCH, "--out", str(benched / "out")]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a process fails the test."""

    def refuse(self: Crew, job: Job, label: str) -> None:
        raise AssertionError(f"{label} was begun")

    monkeypatch.setattr(Crew, "run", refuse)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Whatever a test does, no process of a benchmark stays at work."""
    yield
    assert multiprocessing.active_children() == []


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every result, grid and run: whatever is written anew has others."""
    anew = ("bench.json", "bench.md", "bench.html", "paired.json", LOCK)
    kept = [p for p in folder.rglob("*") if p.is_file() and p.name not in anew]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in kept}


def test_one_file_a_cell_and_a_table_over_them(benched: Path) -> None:
    out = benched / "out"
    names = ["heads_only-seed0.json", "heads_only-seed1.json", "sve-seed0.json", "sve-seed1.json"]
    assert sorted(p.name for p in out.glob("*")) == sorted(
        [*names, LOCK, "bench.html", "bench.json", "bench.md", "grid", "paired.json", "samples"]
    )
    cells, grids = load_cells(out), load_grids(out)
    assert [(c.method, c.seed, c.members) for c in cells] == [(m, s, 2) for m in ("heads_only", "sve") for s in (0, 1)]
    table = json.loads((out / "bench.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["heads_only", "sve"] and table["ood"] == ["digits:ood"]
    for row in table["rows"]:
        own = [c for c in cells if c.method == row["method"]]
        for key in ("nll", "accuracy", "temperature.nll", "ood.digits:ood.entropy.auroc_ood"):
            values = [c.metrics[key] for c in own]
            assert row["metrics"][key]["mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert row["metrics"][key]["std"] == pytest.approx(statistics.stdev(values), rel=1e-12, abs=1e-15)
        points = grids[row["method"]].points
        assert [p.factor for p in points] == [0.333333, 1.0, 3.0] and all(p.validation_nll for p in points)
        best = min(points, key=lambda p: p.validation_nll or math.inf)
        assert {c.rates["factor"] for c in own} == {best.factor}
        assert row["notes"][0].startswith(f"learning rates × {best.factor:.3g}")
    assert grids["sve"].members == grids["heads_only"].members == 2
    assert any("NLL of all members; the search took" in note for note in table["notes"])
    # Of the searched runs only those that a cell went on with are left.
    assert sorted(p.name for p in (benched / "runs" / "bench" / "out").iterdir()) == sorted([LOCK, *(c.run for c in cells)])
    assert table["paired"]["reference"] == "sve" and table["paired"]["rows"]["heads_only"]["seeds"] == [0, 1]
    assert table["rows_of_data"] == {"test": 24, "validation": 24}


def test_results_name_no_folder_of_this_machine(benched: Path, shared_cache: Path) -> None:
    folders = {str(benched), str(Path.home()), str(shared_cache), str(Path(cli.__file__).parent), '"/'}
    for path in (benched / "out").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not [folder for folder in folders if len(folder) > 1 and folder in text], path.name
    assert load_cells(benched / "out")[0].command.endswith("--no-costs --out out")


@pytest.mark.usefixtures("no_work")
def test_the_same_command_again_trains_nothing_and_gives_the_same_table(sve: Any, benched: Path, repeat: list[str]) -> None:
    before, table = stamps(benched), (benched / "out" / "bench.json").read_bytes()
    document = sve.json(*repeat)
    assert "4 runs: 4 done, 0 to train." in sve.err and "has the lowest validation NLL" in sve.err
    assert "At the edge of the grid: sve, heads_only. --grid with further factors" in sve.err
    assert stamps(benched) == before and (benched / "out" / "bench.json").read_bytes() == table
    assert document == json.loads(table)
    sve("recipes", "copy", "quickstart", "renamed.yaml")
    assert sve.json("bench", "renamed.yaml", *repeat[2:]) == document  # looked at, as it is no --table
    assert "4 runs: 4 done, 0 to train." in sve.err and "is not looked at" not in sve.err


@pytest.mark.parametrize(("method", "seed"), [("sve", 0), ("sve", 1), ("heads_only", 1)])  # seed 0 was trained by the search
def test_a_cell_is_what_sve_train_gives(method: str, seed: int, sve: Any, benched: Path, tmp_path: Path) -> None:
    cell = next(c for c in load_cells(benched / "out") if (c.method, c.seed) == (method, seed))
    rates = [f"train.{name}={rate!r}" for name, rate in cell.rates.items() if name != "factor" and rate is not None]
    sve("train", "quickstart", *SETTINGS, *LIMIT, f"method.name={method}", f"seed={seed}", *rates, "--out", tmp_path / "alone")
    [evaluation] = RunDir(tmp_path / "alone").evaluations()
    report = Report.load(evaluation / "report.json")
    values = {k: v.value for k, v in report.addresses().items() if not k.startswith("members.")}
    assert values == pytest.approx(cell.metrics, rel=1e-12) and len(values) > 40  # sums may end in another last bit
    assert report.parameters == cell.parameters
    sve.same_training(tmp_path / "alone", benched / "runs" / "bench" / "out" / cell.run)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (["train.epochs=2"], "holds results with another train.epochs (heads_only)"),
        (["sve:train.lr=1"], "sve.json' was made with another train.lr than is asked for now"),
        (["sve:train.lr=1", "--grid", "1"], "was made with another train."),
        (["sve:method.targets=mlp"], "was made with another method.targets"),
        (["--grid", "1"], "was made with another train."),
        (["--limit", "30"], "holds results with another --limit"),
        (["--methods", "sve,heads_onyl"], "Did you mean 'heads_only'?"),
        (["sev:train.lr=1"], "the method 'sev', which is unknown"),
        (["--sweep", "method.menbers=1,2"], "method.menbers"),
        (["--sweep", "method.members=1,x"], "method.members"),
        (["--sweep", ""], "cannot be read"),
        (["--sweep", "seed=1,2"], "--seeds"),
        (["--sweep", "train.head_lr=1e-3,1e-2"], "--sweep train.head_lr and a learning-rate grid do not go together"),
        (["--grid", "2"], "--grid must be 1 (no search), 3, 5, 7 or factors, not '2'."),
        (["--reference", "svo"], "--reference 'svo' is no row of this table"),
        (["--table", "--reference", "single"], "Its rows are: heads_only; sve."),
        (["--methods", "sve,single", "--sweep", "method.members=1,2"], "single is one network"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    change: list[str], saying: str, sve: Any, benched: Path, repeat: list[str]
) -> None:
    before = sve.digests(benched)
    sve.check_refuses(*repeat, *change, saying=saying)
    assert sve.digests(benched) == before


@pytest.mark.usefixtures("no_work")
def test_places_and_files_that_cannot_be_used_are_refused(sve: Any, benched: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below", "/proc/nothing"):
        sve.check_refuses(*BENCH, "--out", out, saying=f"Cannot write in '{out}'")
    sve.check_refuses(*BENCH, "--table", "--out", "nowhere", saying="no finished run in 'nowhere'")
    assert not (tmp_path / "nowhere").exists()
    out = tmp_path / "copy"
    shutil.copytree(benched / "out", out)
    for name, text, saying in (
        ("sve-seed0.json", "{", "Cannot read"), ("heads_only-seed1.json", "{}", "is not of schema"),
        ("grid/sve.json", '{"schema": "sve-bench-grid/1"}', "is damaged"),
    ):  # fmt: skip
        kept = (out / name).read_text()
        (out / name).write_text(text)
        sve.check_refuses(*BENCH, "--out", out, saying=saying)
        (out / name).write_text(kept)
    for path in out.glob("*-seed*.json"):  # grids alone, of other rows than these
        path.unlink()
    sve.check_refuses(*BENCH, "--limit", "23", "--out", out, saying="was made with another --limit than is asked for now")


@pytest.mark.usefixtures("no_work")
def test_the_table_alone_needs_no_runs(sve: Any, benched: Path, tmp_path: Path) -> None:
    shutil.copytree(benched / "out", tmp_path / "moved" / "out")
    before = json.loads((benched / "out" / "bench.json").read_text())
    for name in ("bench.json", "bench.md", "bench.html"):
        (tmp_path / "moved" / "out" / name).unlink()
    assert sve.json("bench", "quickstart", "--table", "--out", "moved/out") == before
    assert (tmp_path / "moved" / "out" / "bench.html").read_text() == (benched / "out" / "bench.html").read_text()
    assert "is not looked at" not in sve.err
    assert sve.json("bench", "sst2_minilm", "--table", "--out", "moved/out") == before
    assert "The table is of what is in 'moved/out', made from the recipe quickstart; sst2_minilm is not looked at." in sve.err
    (tmp_path / "moved" / "out" / "sve-seed1.json").unlink()  # a table of what is there
    table = sve.json("bench", "quickstart", "--table", "--out", "moved/out")
    assert [row["seeds"] for row in table["rows"]] == [[0, 1], [0]] and table["rows"][1]["metrics"]["nll"]["std"] is None


def checkpointed(run: Path) -> int:
    """Optimiser steps that the run's checkpoint holds."""
    with safe_open(run / "checkpoints" / "latest.safetensors", framework="numpy") as f:
        return int(json.loads(f.metadata()["meta"])["done_steps"])


def processes_of(folder: Path) -> set[int]:
    """Processes that were started with a place below `folder` in their environment."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in entry.read_bytes():
                found.add(int(entry.parent.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_killed_in_the_middle_and_repeated_is_as_unbroken(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["bench", "quickstart", *SETTINGS, "train.batch_size=2", "--limit", "80", "--methods", "heads_only,sve",
                "--seeds", "1", "--grid", "1", "--no-costs"]  # fmt: skip
    steps = 40  # all in one epoch, so that nothing is said in between which a dead benchmark could not hear
    command = [*settings, "--out", "cut"]
    process = sve.start(*command)
    runs = tmp_path / "runs" / "bench" / "cut"
    deadline = time.monotonic() + 200
    while not (begun := list(runs.glob("sve-*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun, process.err.read_text()
    step = process.at_step(begun[0], 2, signal.SIGKILL)
    assert process.wait() == -9 and step < steps // 2, "the signal came too late to prove anything"
    assert [p.name for p in (tmp_path / "cut").glob("*.json")] == ["heads_only-seed0.json"]
    while (left := processes_of(tmp_path) - {process.server.pid}) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left and checkpointed(begun[0]) < step + 15  # what it had started ended with it, not with its work
    before = stamps(tmp_path / "cut")

    sve(*command)
    assert "2 runs: 1 done, 1 to train." in sve.err and "[2/2] Training sve, seed 0" in sve.err
    assert "Going on at step" in sve.err and "[1/2]" not in sve.err
    assert before.items() <= stamps(tmp_path / "cut").items()
    sve(*settings, "--out", "whole", "--jobs", "2")  # two at once, without any interruption
    assert "[1/2]" in sve.err and "[2/2] " in sve.err
    cut, whole = load_cells(tmp_path / "cut"), load_cells(tmp_path / "whole")
    assert [c.label for c in cut] == [c.label for c in whole] == ["heads_only, seed 0", "sve, seed 0"]
    for one, other in zip(cut, whole, strict=True):
        assert one.metrics == other.metrics and one.recipe == other.recipe
        sve.same_training(runs / one.run, tmp_path / "runs" / "bench" / "whole" / other.run)
    tables = [json.loads((tmp_path / name / "bench.json").read_text()) for name in ("cut", "whole")]
    for view in ("metrics", "parameters"):
        assert [row[view] for row in tables[0]["rows"]] == [row[view] for row in tables[1]["rows"]]
    assert tables[0]["paired"] == tables[1]["paired"]


def _fails(crew: Crew) -> None:
    raise SveError("It failed.", "Mend it.")


@pytest.mark.slow
def test_what_diverges_is_survived_and_named(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam moves the heads by about their rate: logits beyond float32 are reached at 3 × this rate, and not at it.
    command = ["bench", "quickstart", *SETTINGS, *LIMIT, "--seeds", "1", "--no-costs", "--out", "out", "--jobs", "2"]
    sve(*command, "--methods", "heads_only", "--grid", "3", "heads_only:train.head_lr=1.3e36")
    points = load_grids(tmp_path / "out")["heads_only"].points
    assert [p.validation_nll is None for p in points] == [False, False, True], points
    assert "'heads_only, learning rates × 3' failed" in sve.err
    assert load_cells(tmp_path / "out")[0].rates["factor"] in (0.333333, 1.0)

    two = [*command, "--methods", "heads_only,sve", "--grid", "1", "heads_only:train.head_lr=1e38", "sve:train.lr=0.02"]
    for said in ("2 runs: 0 done, 2 to train.", "2 runs: 2 done, 0 to train."):  # it would diverge again: not tried twice
        table = sve.json(*two, "--out", "other")
        assert [row["name"] for row in table["rows"]] == ["sve"] and said in sve.err
        [note] = [note for note in table["notes"] if "no result" in note]
        assert note.startswith("heads_only, seed 0, has no result: The ") and "not finite" in note
    [kept] = load_diverged(tmp_path / "other")
    assert (kept.method, kept.seed, kept.limit) == ("heads_only", 0, 24)
    assert not (tmp_path / "other" / "heads_only-seed0.json").exists()
    sve.check_refuses(*two, "train.clip=0.5", "--out", "other", saying="train.clip")  # settings of its own

    with monkeypatch.context() as patch:
        patch.setattr("sve_cli.workflows.bench._trainer", lambda *a: _fails)
        sve.check_refuses(*command, "--methods", "sve", "--grid", "1", "--out", "third", saying="It failed.")
    assert KEPT in sve.err and sve.err.count("error:") == 1 and multiprocessing.active_children() == []

    sve.check_refuses(
        *command, "--methods", "heads_only", "--grid", "1", "heads_only:train.head_lr=1e38", "--out", "none",
        saying="to make a table of. Every one diverged.",
    )  # fmt: skip

    sve.check_refuses(
        *command, "--methods", "heads_only", "--grid", "3", "heads_only:train.head_lr=3e38", "--out", "all",
        saying="heads_only diverged at every point of its learning-rate grid",
    )  # fmt: skip
    assert "heads_only:train.lr=" in sve.err


@pytest.mark.slow
def test_a_sweep_over_seeds_with_its_costs(sve: Any, tmp_path: Path) -> None:
    command = ["bench", "quickstart", *SETTINGS[:-2], "data.ood=[]", *LIMIT, "--methods", "heads_only", "--seeds", "2",
               "--grid", "1", "--sweep", "method.members=1,3", "--out", "out"]  # fmt: skip
    table = sve.json(*command)
    rows = [("heads_only (members=1)", 1, [0, 1]), ("heads_only (members=3)", 3, [0, 1])]
    assert [(r["name"], r["members"], r["seeds"]) for r in table["rows"]] == rows
    assert sorted(p.name for p in (tmp_path / "out").glob("*-seed*")) == [
        f"heads_only-members={m}-seed{s}.json" for m in (1, 3) for s in (0, 1)
    ]
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert list(costs["methods"]) == ["single", "heads_only (members=1)", "heads_only (members=3)"]
    assert {"train_time", "train_flops", "predict_flops", "latency_1", "latency_32"} <= set(table["rows"][1]["costs"])
    assert costs["methods"]["single"]["train_flops"] == 1.0 and costs["methods"]["heads_only (members=1)"]["train_flops"] < 1.0

    lines = sve.err.splitlines()  # a note that every run makes is shown once; what each run does, every time
    assert sum("rows of classes outside data.classes left out" in line for line in lines) == 3  # train, validation, test
    for number, name in enumerate(["heads_only (members=1), seed 0", "heads_only (members=3), seed 0",
                                   "heads_only (members=1), seed 1", "heads_only (members=3), seed 1"], start=1):  # fmt: skip
        said = [line for line in lines if f"{name}" in line]
        assert said[0].startswith(f"[{number}/4] Training {name}, in ") and said[-1].startswith(f"[{number}/4] {name}: accuracy ")
        assert any(line.startswith(f"[{name}] epoch 1,") for line in said)

    (tmp_path / "out" / "costs.json").write_text('{"methods": {"single": 3}}')
    sve.check_refuses(*command, saying="costs.json' holds no costs")


def test_two_benchmarks_do_not_work_in_one_folder(sve: Any, benched: Path, repeat: list[str], no_work: None) -> None:
    for folder in (benched / "out", benched / "runs" / "bench" / "out"):
        before = stamps(folder)
        with held(folder):
            sve.check_refuses(*repeat, saying=f"Another benchmark is at work in '{folder}'")
        assert stamps(folder) == before


def test_ctrl_c_ends_every_process_and_says_how_to_go_on(sve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(futures: Any, return_when: str) -> None:
        deadline = time.monotonic() + 100
        while len(multiprocessing.active_children()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("sve_cli.workflows.bench.wait", interrupted)
    endless = ["bench", "quickstart", *SETTINGS, "train.epochs=100000", *LIMIT, "--methods", "sve,heads_only", "--grid", "1"]
    sve(*endless, "--jobs", "2", "--out", "out", code=130)
    assert multiprocessing.active_children() == [] and [p.name for p in (tmp_path / "out").iterdir()] == [LOCK]
    assert "the same command goes on from there" in sve.err and "[3/6]" not in sve.err
