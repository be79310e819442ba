"""The speed benchmark runs at tiny sizes, so that it cannot rot; its arithmetic and its check are right."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sve_cli.linear_forms import training_flops

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "train.vit.small",
    "train.minilm.large",
    "predict.clinc150",
    "decompose.four_to_one",
    "decompose.accuracy",
    "growth.members",
]


@pytest.fixture(scope="module")
def speed() -> Iterator[SimpleNamespace]:
    """The package benchmarks.speed, which lies beside sve_cli and is not installed."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.speed import __main__ as program
    from benchmarks.speed import child, clock, contenders, document, flops, in_child, machine, networks, page, workloads

    yield SimpleNamespace(program=program, child=child, clock=clock, contenders=contenders, document=document, flops=flops,
                          in_child=in_child, machine=machine, networks=networks, page=page, workloads=workloads)  # fmt: skip
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def tiny(speed: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A document of several workloads at tiny sizes."""
    out = tmp_path_factory.mktemp("speed")
    torch.set_num_threads(1)
    assert speed.program.measure(TINY, "tiny", out, together=True) == 0
    assert "| train.vit.small |" in (out / "speed.md").read_text(encoding="utf-8")
    return json.loads((out / "speed.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_tiny_run_measures_every_part(tiny: dict[str, Any]) -> None:
    assert tiny["schema"] == "sve-speed/1" and tiny["machine"]["processor"] and tiny["machine"]["threads"] == 1
    assert tiny["roofline"]["triad_gb_per_s"] > 0 and tiny["roofline"]["gemm"]["float32"]["peak_gflops"] > 0
    for name in TINY:
        workload = tiny["workloads"][name]
        assert len(workload["load"]["start"]) in (0, 3) and workload["clock"] in ("wall", "cpu")
        for line in workload["ratios"]:
            assert line["q1"] <= line["median"] <= line["q3"]
            assert line["target"] is None or line["reached"] == (
                line["median"] >= line["target"] if line["at_least"] else line["median"] <= line["target"]
            )
    small = tiny["workloads"]["train.vit.small"]
    assert {r["name"] for r in small["ratios"]} == {"vs_full", "vs_paper", "vs_lora", "quarter_vs_lora", "sequential"}
    shares = small["contenders"]["sve"]["profile"]["shares"]
    assert {"matrix products", "attention", "GELU"} <= shares.keys() and abs(sum(shares.values()) - 1) < 0.03
    assert "gemm_peak_share" in {r["name"] for r in tiny["workloads"]["train.minilm.large"]["ratios"]}


def test_needed_flops_are_those_of_the_layers(speed: SimpleNamespace, tmp_path: Path) -> None:
    bench = speed.networks.open_bench(speed.networks.Shape("minilm", 1, 16, 2, width=64), tmp_path)
    sve, full = (speed.contenders.make(bench, n) for n in ("sve", "full"))
    needed = {n: speed.flops.step_flops(lambda s=s: s(0), s.network) for n, s in (("sve", sve), ("full", full))}
    rows, d = 2 * 16, 64
    layers = [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]
    all_of_full = 4 * sum(6 * rows * o * i for o, i in layers)  # the embeddings train, so that every gradient goes on
    assert needed["full"].linear == all_of_full
    auto = [2 * min(training_flops(f, rows, o, i) for f in ("factored", "materialised", "residual")) for o, i in layers]
    assert needed["sve"].linear == 4 * (sum(auto) - 3 * 2 * rows * d * d)  # no gradient goes below q, k and v of the first layer
    assert needed["sve"].done >= needed["sve"].linear and needed["sve"].attention > 0


def test_every_contender_trains_what_it_says(speed: SimpleNamespace, tmp_path: Path) -> None:
    bench = speed.networks.open_bench(speed.networks.Shape("minilm", 1, 8, 2, width=32, members=2), tmp_path)
    paper, full = speed.contenders.make(bench, "paper"), speed.contenders.make(bench, "full")
    before = {n: [p.detach().clone() for p in c.parameters] for n, c in (("paper", paper), ("full", full))}
    for contender in (paper, full):
        contender(0)
    moved = {
        n: [not torch.equal(a, b) for a, b in zip(before[n], c.parameters, strict=True)]
        for n, c in (("paper", paper), ("full", full))
    }
    assert all(moved["paper"])
    names = [n for n, p in full.network.named_parameters() if any(p is q for q in full.parameters)]
    still = {n for n, m in zip(names, moved["full"], strict=False) if not m}
    assert still <= {"pooler.dense.weight", "pooler.dense.bias"}  # nothing reads what the pooler makes
    gains = paper.layers[0].gain_MR
    assert gains.shape == (2, 32) and not torch.equal(gains[0], gains[1])


def test_memory_of_a_step_is_measured_beyond_what_was_there(speed: SimpleNamespace, tmp_path: Path) -> None:
    shape = {"kind": "minilm", "depth": 1, "length": 64, "batch": 8, "width": 64, "members": 2}
    found = speed.in_child.training_memory({"shape": shape, "contender": "sve"}, tmp_path)
    assert found["before"] <= found["built"] + 1e7 and found["peak"] > 1e6
    kept = speed.in_child.saved_activations({"shape": shape}, tmp_path)["bytes"]
    rows, floats = 2 * 8 * 64, 4
    assert kept > rows * 64 * floats * 6  # at least what the six layers keep each


def test_what_others_took_of_the_processor(speed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    start = speed.machine.processor_time()
    if start is None:
        pytest.skip("this system does not say how its processors were used")
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    end = speed.machine.processor_time()
    whole, used, own = (b - a for a, b in zip(start, end, strict=True))
    assert 0.2 <= own < 0.4 and used >= own - 0.05 and round(whole - used, 6) >= 0  # differences of large sums
    monkeypatch.setattr(speed.machine, "processor_time", lambda: (200.0, 130.0, 50.0))
    assert speed.machine.others_share((100.0, 60.0, 20.0)) == 0.4  # 70 of 100 s were used, 30 of them by this program
    assert speed.machine.others_share((100.0, 60.0, -100.0)) == 0.0 and speed.machine.others_share(None) is None


@pytest.mark.slow
def test_a_family_has_a_process_of_its_own_and_what_it_loses_is_named(
    speed: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speed.program.measure(["decompose.square", "decompose.nothing"], "tiny", tmp_path, seconds=1.0) == 1
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["workloads"]
    assert found["decompose.square"]["ratios"] and 0 <= found["decompose.square"]["others"] <= 1
    assert found["decompose.nothing"] == {"failed": "its process ended with 1", "took": 0.0}
    assert "decompose.nothing: FAILED: its process ended with 1" in capsys.readouterr().out


@pytest.mark.slow
def test_forks_measure_what_a_process_does_and_name_one_that_failed(speed: SimpleNamespace, tmp_path: Path) -> None:
    shape = {"kind": "minilm", "depth": 1, "length": 8, "batch": 2, "width": 32, "members": 2}
    here = speed.in_child.saved_activations({"shape": shape}, tmp_path)
    training = ("training_memory", {"shape": shape, "contender": "sve_sequential"})
    kept, memory = speed.child.run_children([("saved_activations", {"shape": shape}), training], tmp_path)
    assert kept == here and memory["peak"] > memory["before"] > 0
    with pytest.raises(RuntimeError, match="the fork that measured 'training_memory' failed"):
        speed.child.run_children([("training_memory", {"shape": shape, "contender": "nothing"})], tmp_path)


def test_the_clock_takes_turns_and_stops(speed: SimpleNamespace) -> None:
    order: list[str] = []
    actions = {n: lambda turn, n=n: order.append(f"{n}{turn}") for n in "ab"}
    times = speed.clock.interleave(actions, repeats=2, seconds=60.0)
    assert order == ["a0", "b0", "a1", "b1", "b2", "a2"] and [len(t) for t in times.values()] == [2, 2]
    assert [len(t) for t in speed.clock.interleave(actions, repeats=9, seconds=0.0).values()] == [2, 2]
    line = speed.clock.ratio("x", "x", [1.0, 2.0, 4.0], 2.0)
    assert (line["median"], line["q1"], line["q3"], line["reached"]) == (2.0, 1.5, 3.0, True)
    assert not speed.clock.ratio("x", "x", [1.0], 2.0, at_least=True)["reached"]
    for at_least, value in ((False, 1.03002), (True, 1.02998)):  # as stored, both are the target
        near = speed.clock.ratio("x", "x", [value], 1.03, at_least)
        assert near["median"] == near["target"] and near["reached"]


def test_the_check_finds_what_got_worse(speed: SimpleNamespace, tiny: dict[str, Any]) -> None:
    stored = copy.deepcopy(tiny)
    stored["workloads"]["check"] = stored["workloads"]["train.vit.small"]
    now = copy.deepcopy(stored["workloads"]["check"])
    assert speed.document.compare(now, stored) == []
    old = now["ratios"][0]["median"]
    now["ratios"][0]["median"] = 1.5 * old + 0.1
    assert speed.document.compare(now, stored) == []
    now["ratios"][0]["median"] = 1.7 * old + 0.1
    assert len(speed.document.compare(now, stored)) == 1
    now["ratios"][0]["median"] = float("nan")
    assert len(speed.document.compare(now, stored)) == 1
    with pytest.raises(speed.document.BadDocument, match="no check"):
        speed.document.compare(now, tiny)


def test_the_check_ends_with_3(
    speed: SimpleNamespace, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = tiny["workloads"]["train.vit.small"]
    monkeypatch.setattr(speed.program, "workload", lambda name: lambda context: measured)
    stored = copy.deepcopy(tiny)
    stored["workloads"]["check"] = copy.deepcopy(measured)
    path = tmp_path / "speed.json"
    speed.document.store(path, stored)
    assert speed.program.check(path) == 0
    for line in stored["workloads"]["check"]["ratios"]:
        line["median"] = -1.0
    speed.document.store(path, stored)
    assert speed.program.check(path) == 3
    assert speed.program.check(tmp_path / "none.json") == 2


def test_the_page_says_what_the_stored_file_says(speed: SimpleNamespace) -> None:
    text, stored = speed.page.PAGE.read_text(encoding="utf-8"), speed.document.read(speed.page.STORED)
    assert {m[1] for m in speed.page.REGION.findall(text)} == set(speed.page.REGIONS)
    assert speed.page.renewed(text, stored) == text, "run: python -m benchmarks.speed.page write"
    beside = speed.page.STORED.with_suffix(".md")
    assert beside.read_text(encoding="utf-8") == speed.page.whole(stored)
    first = next(w for w in stored["workloads"].values() if w.get("ratios"))
    first["ratios"][0]["median"] = 77.77
    assert speed.page.renewed(text, stored) != text


def test_another_machines_run_is_not_overwritten(speed: SimpleNamespace, tmp_path: Path) -> None:
    path, here = tmp_path / "speed.json", {"name": "here", "threads": 2}
    kept = speed.document.started(path, "short", here)
    kept["workloads"]["check"] = {"ratios": []}
    speed.document.store(path, kept)
    assert speed.document.started(path, "short", here) == kept
    for tier, machine in (("short", {**here, "threads": 1}), ("long", here)):
        with pytest.raises(speed.document.BadDocument, match="Name another --out"):
            speed.document.started(path, tier, machine)
