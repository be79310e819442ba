"""Paired differences of a finished benchmark: from the runs at hand, from what is kept of them, and what is left out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sve_cli.benchmark import build_table, load_cells
from sve_cli.comparison import compare_ood, compare_seeds
from sve_cli.comparison.samples import SampleNumbers
from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.posthoc.state import Posthoc
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS
from sve_cli.rundir import RunDir
from sve_cli.workflows import bench_paired
from sve_cli.workflows.bench import write_table
from sve_cli.workflows.bench_cells import Study
from sve_cli.workflows.session import Silent
from sve_cli.workflows.stored import slug, stored_posthoc


@pytest.fixture
def own(benched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The finished benchmark with results of the test's own; few resamples."""
    monkeypatch.setattr(bench_paired, "BOOTSTRAP", 20)
    shutil.copytree(benched / "out", tmp_path / "out")
    return Study("quickstart", (), ("sve",), 2, {}, (1.0,), tmp_path / "out", benched / "runs" / "bench" / "out", 24)


def paired(study: Study, log: Silent | None = None) -> dict[str, Any]:
    """With what the runs at hand give now, not with what was kept of them."""
    if study.runs.is_dir():
        shutil.rmtree(study.out / "samples")
    found = bench_paired.paired_differences(study, load_cells(study.out), log)
    assert found is not None
    return found


def test_rows_that_cannot_be_paired_are_left_out_with_a_warning(own: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, log = load_cells(own.out), Silent()
    keys = paired(own, log)["rows"]["heads_only"]["differences"]
    assert {"nll", "temperature.nll", "both_scaled.nll", "ood.digits:ood.entropy.auroc_ood"} <= set(keys) and log.lines == []
    monkeypatch.setattr(bench_paired, "stored_posthoc", lambda evaluation: Posthoc())  # evaluate.temperature: false
    bare = paired(own)["rows"]["heads_only"]["differences"]
    assert set(bare) == {key for key in keys if not key.startswith(("temperature.", "both_scaled."))}

    # Seeds that were evaluated with fitted weights are compared with them, each with its own.
    here = [RunDir(own.runs / cell.run) for cell in cells if cell.row == "sve"]
    monkeypatch.setattr(bench_paired, "_agree", lambda numbers, cell: True)  # the results were made without weights
    weights = dict(zip([run.evaluations()[-1] for run in here], ["weighted:0.9,0.1", "weighted:0.2,0.8"], strict=True))
    monkeypatch.setattr(bench_paired, "stored_aggregate", lambda evaluation: weights.get(evaluation, "probs"))
    tests = {evaluation: Predictions.load(evaluation / "predictions" / "test") for evaluation in weights}
    nll = [METRICS.resolve("nll").compute(aggregate(tests[evaluation], way)) for evaluation, way in weights.items()]
    weighted = paired(own)["rows"]["heads_only"]["differences"]
    assert weighted["nll"]["reference"] == pytest.approx(sum(nll) / 2) != pytest.approx(bare["nll"]["reference"])
    assert weighted["nll"]["other"] == pytest.approx(bare["nll"]["other"])

    def refuse(references: Any, others: Any, settings: Any) -> None:
        raise SveError("Only 3 of the 24 samples are shared.")

    monkeypatch.setattr(bench_paired, "_differences", refuse)
    why = "heads_only (B) is not compared with sve (A): Only 3 of the 24 samples are shared."
    assert paired(own, log) == {"reference": "sve", "bootstrap": 20, "rows": {}, "left_out": [why], "unread": []}
    assert log.lines == [f"warning: {why}"]
    monkeypatch.undo()
    monkeypatch.setattr(bench_paired, "BOOTSTRAP", 20)
    turned = paired(replace(own, reference="heads_only"))
    assert turned["reference"] == "heads_only"
    assert turned["rows"]["sve"]["differences"]["nll"]["difference"] == pytest.approx(-keys["nll"]["difference"])
    swept = [replace(cell, sweep={"method.params.rank": "4"}) if cell.method == "sve" else cell for cell in cells]
    found = bench_paired.paired_differences(own, swept)
    assert found is not None and found["reference"] == "sve (rank=4)"  # the first row of sve, whatever comes before it


def test_differences_are_those_of_the_runs_own_predictions(own: Study) -> None:
    found = paired(own)["rows"]["heads_only"]
    sides = [
        [RunDir(own.runs / c.run).evaluations()[-1] for c in load_cells(own.out) if c.row == row] for row in ("sve", "heads_only")
    ]
    tests, oods = (
        [[Predictions.load(e / "predictions" / name) for e in side] for side in sides] for name in ("test", slug("digits:ood"))
    )
    expected = {
        d.key: d for d in compare_seeds(*tests, metrics=["accuracy", "nll", "ece_top1_w15", "brier"], bootstrap=20, permutations=0)
    }
    scaled = [
        [fitted.apply(p) for p, e in zip(test, side, strict=True) if (fitted := stored_posthoc(e).temperature)]
        for test, side in zip(tests, sides, strict=True)
    ]
    for where, ours in (("temperature", tests[0]), ("both_scaled", scaled[0])):
        only = compare_seeds(ours, scaled[1], metrics=["nll"], bootstrap=20, permutations=0)
        expected |= {f"{where}.{d.key}": d for d in only}
    pairs = [list(zip(test, ood, strict=True)) for test, ood in zip(tests, oods, strict=True)]
    expected |= {d.key: d for d in compare_ood(*pairs, scores=["entropy"], bootstrap=20, permutations=0)}
    assert len(expected) == 7 and found["seeds"] == [0, 1]
    assert not {"temperature.accuracy", "both_scaled.accuracy"} & found["differences"].keys()
    for key, d in expected.items():
        got = found["differences"][key]
        values = (d.reference, d.other, d.difference, d.low, d.high, d.n)
        assert [got[k] for k in ("reference", "other", "difference", "low", "high", "n")] == pytest.approx(values, abs=2e-7), key
        assert got["by_seed"] == pytest.approx(d.by_seed, abs=2e-7) and sum(d.by_seed) / 2 == pytest.approx(d.difference), key
    nll = METRICS.resolve("nll")
    ours, theirs = ([nll.compute(aggregate(p, "probs")) for p in side] for side in tests)
    assert expected["nll"].by_seed == pytest.approx([b - a for a, b in zip(ours, theirs, strict=True)])


def test_differences_outlive_the_runs(own: Study) -> None:
    before = paired(own)
    gone = replace(own, runs=own.out / "nowhere")
    assert paired(gone) == before and {len(row["seeds"]) for row in before["rows"].values()} == {2}
    kept = sorted((own.out / "samples").iterdir())
    assert [p.name for p in kept] == [f"{m}-seed{s}.parquet" for m in ("heads_only", "sve") for s in (0, 1)]

    other = SampleNumbers.load(kept[0])
    replace(other, run="heads_only-seed0-ffffffff").save(kept[0])  # of other settings than the result
    fewer = paired(gone)
    assert fewer["rows"]["heads_only"]["seeds"] == [1]
    notes = build_table(load_cells(own.out), {}, None, fewer).notes
    assert "Paired differences of heads_only leave seed 0 out: neither its run nor readable samples of it are at hand." in notes
    assert not [note for note in build_table(load_cells(own.out), {}, None, before).notes if "leave" in note]
    kept[0].write_bytes(b"PAR1 and then nothing")
    assert bench_paired.paired_differences(own, load_cells(own.out)) == before, "the run is at hand, and mends what is kept"
    assert paired(gone) == before
    kept[0].write_bytes(b"PAR1 and then nothing")
    log = Silent()
    [why] = paired(gone, log)["left_out"]
    assert why.startswith("heads_only, seed 0, is left out of the paired differences: ") and "is damaged" in why
    assert log.lines == [f"warning: {why}"]
    shutil.rmtree(own.out / "samples")
    assert bench_paired.paired_differences(gone, load_cells(own.out)) is None


def test_numbers_of_another_training_are_not_compared(own: Study) -> None:
    before, cells = paired(own), load_cells(own.out)
    path = own.out / "samples" / "heads_only-seed0.parquet"
    kept = SampleNumbers.load(path)
    test = kept.sets["test"]
    wrong = replace(test, plain={**test.plain, "correct": 1 - test.plain["correct"]})
    stale = replace(kept, sets={**kept.sets, "test": wrong})  # the same settings, trained anew
    stale.save(path)
    assert bench_paired.paired_differences(own, cells) == before, "the run is at hand, and is what the result says"
    stale.save(path)
    gone = replace(own, runs=own.out / "nowhere")
    [why] = paired(gone)["left_out"]
    assert why.startswith("heads_only, seed 0, is left out") and "parquet' is not what" in why

    [cell] = [c for c in cells if c.label == "heads_only, seed 0"]
    other = replace(cell, metrics={**cell.metrics, "nll": cell.metrics["nll"] + 0.01})  # a result that is not of this run
    found = bench_paired.paired_differences(own, [other if c is cell else c for c in cells])
    assert found is not None and found["rows"]["heads_only"]["seeds"] == [1]
    assert f"{cell.run}' is not what" in found["left_out"][0]


def test_a_damaged_file_costs_none_of_the_stored_differences(own: Study) -> None:
    write_table(own.out, own)
    stored = (own.out / "paired.json").read_bytes()
    gone = replace(own, runs=own.out / "nowhere")
    (own.out / "samples" / "sve-seed0.parquet").write_bytes(b"PAR1 and then nothing")
    table = write_table(own.out, gone)
    assert (own.out / "paired.json").read_bytes() == stored
    assert table.paired is not None and table.paired["rows"]["heads_only"]["seeds"] == [0, 1]
    assert any("sve-seed0.parquet' is damaged" in note for note in table.notes)
    assert not any("at hand" in note for note in table.notes)
    (own.out / "paired.json").write_text("{}")
    with pytest.raises(SveError, match="is damaged: reference is missing"):
        write_table(own.out, gone)
