"""The parts of `sve bench` by themselves: its processes, and costs that cannot be measured."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from sve_cli.errors import SveError
from sve_cli.recipe import load_recipe
from sve_cli.workflows import bench_costs
from sve_cli.workflows.bench_cells import Study
from sve_cli.workflows.bench_worker import Crew, Job
from sve_cli.workflows.session import Silent

SETTINGS = ["train.epochs=1", "train.batch_size=8", "train.precision=float32", "evaluate.bootstrap=0", "method.members=2"]


def job(folder: Path, loaded: Any) -> Job:
    return Job("train", loaded, folder, 24, 1, "")


def test_a_process_that_crashes_or_is_killed_says_so(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVE_CACHE_DIR", str(shared_cache))
    with pytest.raises(RuntimeError, match="'broken' crashed"):  # our bug: exit code 1, not 2
        Crew(Silent()).run(job(tmp_path / "a", None), "broken")

    endless = load_recipe("quickstart", [*SETTINGS, "train.epochs=100000"])
    for end, saying in (("kill", r"'endless' was ended from outside \(signal 9\)"), ("stop", "'endless' was ended from outside")):
        log = Silent()
        crew, errors = Crew(log), []

        def work(crew: Crew = crew, errors: list[Any] = errors, end: str = end) -> None:
            try:
                crew.run(job(tmp_path / end, endless), "endless")
            except SveError as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        deadline = time.monotonic() + 100
        while not any("epoch 1," in line for line in log.lines) and time.monotonic() < deadline:
            time.sleep(0.01)
        if end == "stop":
            crew.stop()
        else:
            next(iter(crew._live)).kill()
        thread.join(60)
        assert not thread.is_alive()
        with pytest.raises(SveError, match=saying):
            raise errors[0]
    with pytest.raises(SveError, match="was stopped"):
        crew.run(job(tmp_path / "late", load_recipe("quickstart", SETTINGS)), "late")
    assert multiprocessing.active_children() == []


def test_a_row_whose_costs_cannot_be_measured_is_left_out_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("quickstart", (), ("heads_only", "sve"), 1, {}, (1.0,), tmp_path, tmp_path / "runs")
    broken = "single"

    def flops(session: Any, recipe: Any) -> dict[str, float]:
        if recipe.method.name == broken:
            raise SveError(f"{broken} cannot be counted.")
        stretch = 30.0 if recipe.method.name == "sve" else 20.0  # of its whole training, less was measured
        return {
            "train_flops": {"single": 4.0, "heads_only": 1.0, "sve": 4.0}[recipe.method.name],
            "predict_flops": 2.0,
            "stretch": stretch,
        }

    monkeypatch.setattr(bench_costs, "_session", lambda recipe, limit, others: recipe)
    monkeypatch.setattr(bench_costs, "_flops", flops)
    monkeypatch.setattr(bench_costs, "_train", lambda session, recipe: 0.5)
    monkeypatch.setattr(bench_costs, "_latencies", lambda sessions, batch: {s: (0.1, 0.5 * (s == "sve")) for s in sessions})
    log = Silent()
    assert bench_costs.measure_costs(study, log) == {"methods": {}}
    assert log.lines[-1] == "warning: No costs are shown: they are relative to single."
    assert bench_costs.read_costs(tmp_path) is None

    broken = "sve"
    found = bench_costs.measure_costs(study, log)
    assert log.lines[-1] == "warning: The costs of sve cannot be measured: sve cannot be counted."
    assert list(found["methods"]) == ["single", "heads_only"] and found["methods"]["heads_only"]["train_flops"] == 0.25

    broken = ""
    kept = found["methods"]["heads_only"]
    assert "noisy" not in found
    again = bench_costs.measure_costs(study, log)  # only what is missing, beside single
    assert again["noisy"] == ["sve"] and "The times of sve differ from one measurement to the next" in log.lines[-1]
    assert again["methods"]["sve"]["train_flops"] == 1.5 and again["methods"]["sve"]["train_flops_absolute"] == 6.0
    assert again["methods"]["sve"]["train_time"] == 1.5 and again["methods"]["sve"]["predict_flops"] == 1.0
    assert not any("stretch" in key for row in again["methods"].values() for key in row)
    assert again["methods"]["heads_only"] == kept and bench_costs.read_costs(tmp_path) == again


def test_other_work_at_one_moment_is_not_a_rows_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is measured twice in a row, and one that scatters is named."""
    study = Study("quickstart", (), ("single", "heads_only", "sve"), 1, {}, (1.0,), tmp_path, tmp_path / "runs")
    measured: list[str] = []

    def seconds(session: Any, recipe: Any) -> float:
        measured.append(recipe.method.name)
        return 4.0 if len(measured) in (3, 4) else 1.0  # the machine is busy for a while

    monkeypatch.setattr(bench_costs, "_session", lambda recipe, limit, others: recipe)
    monkeypatch.setattr(bench_costs, "_flops", lambda *a: {"train_flops": 1.0, "predict_flops": 1.0, "stretch": 1.0})
    monkeypatch.setattr(bench_costs, "_train", seconds)
    monkeypatch.setattr(bench_costs, "_latencies", lambda sessions, batch: dict.fromkeys(sessions, (0.1, 0.0)))
    found = bench_costs.measure_costs(study, Silent())
    assert sorted(measured) == sorted(["single", "heads_only", "sve"] * 3)
    assert all(one != other for one, other in itertools.pairwise(measured))
    assert [row["train_time_absolute"] for row in found["methods"].values()] == [1.0, 1.0, 1.0]
    assert found["noisy"] == ["single", "sve"]


def test_the_cycles_of_snapshot_cost_what_single_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    """8 cycles share 8 steps; of the three batches that are measured each of them takes one."""
    monkeypatch.setenv("SVE_CACHE_DIR", str(shared_cache))
    rows = ["train.batch_size=8", "data.ood=[]", *SETTINGS[:1], *SETTINGS[2:-1], "method.members=8"]
    study = Study("quickstart", tuple(rows), ("single", "snapshot"), 1, {}, (1.0,), tmp_path, tmp_path / "runs", limit=64)
    monkeypatch.setattr(bench_costs, "_latencies", lambda sessions, batch: {s: (0.1, 0.0) for s in sessions})
    monkeypatch.setattr(bench_costs, "ROUNDS", 1)
    costs = bench_costs.measure_costs(study, Silent())["methods"]
    assert costs["snapshot"]["train_flops"] == pytest.approx(1.0, rel=0.01)
    assert costs["single"]["train_flops"] == costs["single"]["train_time"] == 1.0


def test_smaller_batches_of_a_sweep_cost_their_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    monkeypatch.setenv("SVE_CACHE_DIR", str(shared_cache))
    points = {"train.batch_size": ["4", "8"]}
    study = Study("quickstart", (*SETTINGS, "data.ood=[]"), ("single",), 1, points, (1.0,), tmp_path, tmp_path / "runs", limit=64)
    monkeypatch.setattr(bench_costs, "_latencies", lambda sessions, batch: {s: (0.1, 0.0) for s in sessions})
    monkeypatch.setattr(bench_costs, "ROUNDS", 1)
    costs = bench_costs.measure_costs(study, Silent())["methods"]
    assert [costs[f"single (batch_size={n})"]["train_flops"] for n in (4, 8)] == pytest.approx([1.0, 1.0], rel=0.01)  # as many rows


def test_short_predictions_are_measured_often(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"fast": [9.0, *[0.02] * 40, *[0.06] * 60], "slow": [9.0, *[0.5] * 100]}  # the first warms up
    calls = {name: iter(seconds) for name, seconds in took.items()}
    made: dict[str, int] = dict.fromkeys(took, 0)

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def build(self, log_store: bool) -> Any:
            return self

        def set_training(self, training: bool) -> None:
            assert not training

    def runners(ensemble: Fake, inputs: Any) -> dict[str, Any]:
        def run() -> float:
            made[ensemble.name] += 1
            return next(calls[ensemble.name])

        return {"one by one": run}

    monkeypatch.setattr(bench_costs, "_runners", runners)
    monkeypatch.setattr(bench_costs, "_inputs", lambda session, batch: None)
    found = bench_costs._latencies({name: cast("Any", Fake(name)) for name in took}, 1)
    assert made == {"fast": 1 + 40 + 4, "slow": 1 + 7}  # a second of each, and seven at least
    assert found["slow"] == (0.5, 0.0) and found["fast"] == (0.02, 0.0)
    assert bench_costs._middle([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2 / 3)
