"""`sve compare` and `sve members` on finished runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.posthoc.temperature import fit_temperature
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS
from sve_cli.rundir import seal
from sve_cli.workflows.compare import Options, System, compare

QUICK = ["--bootstrap", "100", "--permutations", "100"]


def predictions_of(run: Path) -> Path:
    """The stem of the run's test predictions."""
    (stem,) = run.glob("evaluations/*/predictions/test.safetensors")
    return stem.with_suffix("")


def changed(run: Path, to: Path, change: Callable[[Predictions], Predictions]) -> Path:
    """A copy of a run with other predictions on all sets, sealed again."""
    shutil.copytree(run, to)
    (evaluation,) = (to / "evaluations").iterdir()
    for file in evaluation.glob("predictions/*.safetensors"):
        change(Predictions.load(file.with_suffix(""))).save(file.with_suffix(""))
    seal(evaluation, list(json.loads((evaluation / "COMPLETE").read_text())["files"]))
    return to


@pytest.fixture
def noisy(trained: Path, tmp_path: Path) -> Path:
    """The same run with noise on its logits."""

    def noise(predictions: Predictions) -> Predictions:
        draw = np.random.default_rng(0).normal(size=predictions.logits_MNC.shape)
        return replace(predictions, logits_MNC=(predictions.logits_MNC + 2.0 * draw).astype(np.float32))

    return changed(trained, tmp_path / "noisy", noise)


@pytest.mark.parametrize("command", ["compare", "members"])
def test_a_run_that_is_not_finished_is_refused(sve: Any, trained: Path, tmp_path: Path, command: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "stopped"))
    (run / "COMPLETE").unlink()
    sides = [trained, run] if command == "compare" else [run]
    sve.check_refuses(command, *sides, saying=f"The run '{run}' is not complete.")
    assert f"sve train --resume {run}" in sve.err


def test_a_run_against_another(sve: Any, trained: Path, noisy: Path, tmp_path: Path) -> None:
    before = sve.digests(trained)
    found = sve.json("compare", trained, noisy, *QUICK, "--scaled", "--out", tmp_path / "out")
    assert found["reference"] == "digits" and found["pairs"][0]["name"] == "noisy" and found["members"] == 2
    rows = {row["key"]: row for row in found["pairs"][0]["differences"]}
    ood = [f"ood.digits:ood.{score}.auroc_ood" for score in ("entropy", "mutual_information")]
    assert {"nll", "temperature.nll", "disagreement", *ood} <= set(rows)
    assert rows["disagreement"]["verdict"] == "B higher" and rows["nll"]["n"] == 48
    lowest = min(rows.values(), key=lambda row: row["p_value"])
    assert lowest["p_holm"] == pytest.approx(min(1.0, len(rows) * lowest["p_value"])), "corrected for all rows of the pair"
    (report,) = trained.glob("evaluations/*/report.json")
    stored = {row["key"]: row["metrics"] for row in json.loads(report.read_text())["rows"]}
    for key, row, metric in (
        ("nll", "ensemble", "nll"), ("ece_top1_w15", "ensemble", "ece_top1_w15"), ("temperature.nll", "temperature", "nll")
    ):  # fmt: skip
        assert rows[key]["reference"] == pytest.approx(stored[row][metric]["value"])
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"comparison.json", "comparison.md", "comparison.html"}
    assert json.loads(written["comparison.json"]) == found and "<svg" in written["comparison.html"]
    sve("compare", trained, noisy, *QUICK, "--scaled", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "comparison.json").read_text() == written["comparison.json"], "to the bit"
    assert "A = digits, B = noisy, 48 samples" in sve.out and "Only 48 samples" in sve.err
    assert sve.digests(trained) == before


def test_a_run_against_itself_and_against_a_file(sve: Any, trained: Path, noisy: Path) -> None:
    found = sve.json("compare", trained, trained, noisy, *QUICK)
    assert [found["reference"], *(pair["name"] for pair in found["pairs"])] == ["digits (1)", "digits (2)", "noisy"]
    for row in found["pairs"][0]["differences"]:
        assert (row["difference"], row["p_value"], row["verdict"]) == (0.0, 1.0, "tie (inside the interval)"), row["key"]
    alone = sve.json("compare", trained, noisy, *QUICK)
    assert found["pairs"][1]["differences"] == alone["pairs"][0]["differences"]
    stem = predictions_of(noisy)
    by_file = [sve.json("compare", trained, f"{stem}{end}", *QUICK) for end in ("", ".safetensors", ".parquet")]
    assert by_file[0] == by_file[1] == by_file[2]
    plain = [row for row in alone["pairs"][0]["differences"] if not row["key"].startswith("ood.")]
    # Corrected for fewer rows, else the same.
    drop = {"p_holm": 0}
    assert [row | drop for row in by_file[0]["pairs"][0]["differences"]] == [row | drop for row in plain]
    assert any("only one side has are left out: digits:ood" in note for note in by_file[0]["pairs"][0]["notes"])


def test_metrics_are_chosen_and_notes_say_what_is_missing(sve: Any, trained: Path, noisy: Path, tmp_path: Path) -> None:
    one = changed(trained, tmp_path / "one", lambda p: replace(p.member(0), dataset="other"))
    chosen = ["--metrics", "nll,disagreement", "--metrics", "brier"]
    found = sve.json("compare", one, noisy, *chosen, "--permutations", 0, "--bootstrap", 100)
    (pair,) = found["pairs"]
    assert [row["key"] for row in pair["differences"]] == ["nll", "brier"] and pair["differences"][0]["p_value"] is None
    assert any(note.endswith("several members): disagreement.") for note in pair["notes"])
    assert any("called other:test in one" in note for note in pair["notes"])
    fewer = changed(trained, tmp_path / "fewer", lambda p: p.subset(np.arange(p.n_samples - 5)))
    (pair,) = sve.json("compare", trained, fewer, "--metrics", "nll", *QUICK)["pairs"]
    assert (pair["n"], pair["only_reference"], pair["only_other"]) == (43, 5, 0)
    assert "5 samples that only digits has are left out." in pair["notes"]


def test_how_a_run_was_evaluated_is_kept(sve: Any, trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "logits"))
    sve("evaluate", other, "--aggregate", "logits", "--bins", "7")
    found = sve.json("compare", other, trained, *QUICK)
    assert found["settings"]["aggregate"] == "logits" and found["settings"]["bins"] == 7
    assert "ece_top1_w7" in [row["key"] for row in found["pairs"][0]["differences"]]
    assert any("evaluated on the mean of its members' probabilities" in note for note in found["pairs"][0]["notes"])


def test_what_cannot_be_compared(sve: Any, trained: Path, noisy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stem = predictions_of(trained)
    sve.check_refuses("compare", trained, saying="at least two runs")
    sve.check_refuses("compare", saying="RUN RUN")
    sve.check_refuses("compare", trained, "nothing", saying="neither a run nor a predictions file at 'nothing'")
    sve.check_refuses("compare", trained, "empty", saying="There is no run at")
    sve.check_refuses("compare", trained, noisy, "--metrics", "nl", saying="Did you mean 'nll'?")
    sve.check_refuses("compare", trained, stem, "--scaled", saying="'test' has no fitted temperature")
    sve.check_refuses("compare", trained, noisy, "--bootstrap", 10, saying="--bootstrap")
    sve.check_refuses("compare", trained, noisy, "--metrics", ",", saying="',' names nothing")
    (tmp_path / "file").write_text("mine")
    for command in (["compare", trained, "nothing"], ["members", "nothing"], ["diversity", trained]):  # before any work
        sve.check_refuses(*command, "--out", tmp_path / "file", saying="it is not a folder")
    turned = changed(trained, tmp_path / "turned", lambda p: replace(p, labels_N=np.where(p.labels_N == 3, 5, p.labels_N)))
    sve.check_refuses("compare", trained, turned, saying="is '3' in 'digits' and '5' in 'turned'")
    shutil.rmtree(turned / "evaluations")
    sve.check_refuses("compare", trained, turned, saying="has no finished evaluation")
    (file,) = noisy.glob("evaluations/*/predictions/test.parquet")
    file.write_bytes(b"")
    sve.check_refuses("compare", trained, noisy, saying="was changed")


def test_predictions_of_another_tool_are_compared_too(sve: Any, trained: Path, tmp_path: Path) -> None:
    stem = predictions_of(trained)
    own = Predictions.load(stem)
    probs = np.exp(own.logits_MNC - own.logits_MNC.max(-1, keepdims=True))
    probs_MNC = probs / probs.sum(-1, keepdims=True)
    np.savez(tmp_path / "other.npz", probs=probs_MNC, labels=own.labels_N, ids=own.ids_N, classes=own.classes)
    found = sve.json("compare", stem, tmp_path / "other.npz", "--bootstrap", 100, "--permutations", 0, "--metrics", "nll")
    [row] = found["pairs"][0]["differences"]
    assert row["difference"] == pytest.approx(0, abs=1e-6) and row["n"] == own.n_samples
    assert sve.json("members", tmp_path / "other.npz", "--bootstrap", 100, "--metrics", "nll")["members"] == 2


@pytest.mark.parametrize(
    ("suffix", "damage", "saying"),
    [
        (".parquet", lambda path: path.write_bytes(b"junk"), r"test\.parquet' is damaged"),
        (".parquet", lambda path: pq.write_table(pq.read_table(path).drop(["id"]), path), "its files have no 'id'"),
        (".safetensors", lambda path: rewritten(path, drop="logits_MNC"), "its files have no 'logits_MNC'"),
        (".safetensors", lambda path: rewritten(path, dropped_meta="classes"), "its files have no 'classes'"),
        (".safetensors", lambda path: path.write_bytes(path.read_bytes()[:50]), "is not a readable safetensors file"),
    ],
)
def test_damaged_predictions_are_a_sentence(suffix: str, damage: Any, saying: str, trained: Path, tmp_path: Path) -> None:
    stem = predictions_of(trained)
    for each in (".parquet", ".safetensors"):
        shutil.copy(stem.with_name(stem.name + each), tmp_path / f"test{each}")
    damage(tmp_path / f"test{suffix}")
    with pytest.raises(SveError, match=saying) as caught:
        Predictions.load(tmp_path / "test")
    assert "sve evaluate RUN" in caught.value.hint


def rewritten(path: Path, drop: str = "", dropped_meta: str = "") -> None:
    """A predictions file without one of its tensors or facts."""
    with safe_open(path, framework="numpy") as f:
        meta = json.loads(f.metadata()["meta"])
        tensors = {name: f.get_tensor(name) for name in f.keys() if name != drop}  # noqa: SIM118 (not a dict)
    meta.pop(dropped_meta, None)
    save_file(tensors, path, metadata={"meta": json.dumps(meta)})


def test_how_many_members(sve: Any, trained: Path, tmp_path: Path) -> None:
    found = sve.json("members", trained, "--bootstrap", 100, "--out", tmp_path / "out")
    curves = {curve["key"]: curve["points"] for curve in found["curves"]}
    assert found["members"] == 2 and [p["members"] for p in curves["nll"]] == [1, 2]
    assert "ood.digits:ood.entropy.auroc_ood" in curves and found["enough"] in (1, 2)
    (report,) = trained.glob("evaluations/*/report.json")
    stored = {row["key"]: row["metrics"] for row in json.loads(report.read_text())["rows"]}
    ends = [stored[f"members.{m}"]["nll"]["value"] for m in (0, 1)]
    assert (curves["nll"][0]["smallest"], curves["nll"][0]["largest"]) == pytest.approx((min(ends), max(ends)))
    assert curves["nll"][1]["value"] == pytest.approx(stored["ensemble"]["nll"]["value"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"members.json", "members.md", "members.html"}
    assert json.loads((tmp_path / "out" / "members.json").read_text()) == found
    by_file = sve.json("members", predictions_of(trained), "--bootstrap", 100, "--metrics", "nll,accuracy")
    for curve in by_file["curves"]:  # other columns beside it move the last bit of a product
        for here, there in zip(curve["points"], curves[curve["key"]], strict=True):
            assert here == pytest.approx(there, rel=1e-12, abs=1e-12)
    assert [curve["key"] for curve in by_file["curves"]] == ["nll", "accuracy"]
    assert "Main metrics" in sve("members", trained, "--bootstrap", 100, "--metrics", "nll") and "members" in sve.err
    sve.check_refuses("members", "nothing", saying="neither a run nor a predictions file")
    sve.check_refuses("members", saying="no complete run")
    alone = changed(trained, tmp_path / "alone", lambda p: p.member(0))
    sve.check_refuses("members", alone, saying="have one member")


def test_a_weighted_run_keeps_its_own_weights(sve: Any, trained: Path, noisy: Path, tmp_path: Path) -> None:
    """Its members' fitted weights are its own: no other side takes them, and none takes them from it."""
    weighted = Path(shutil.copytree(noisy, tmp_path / "weighted"))
    sve("evaluate", weighted, "--aggregate", "weighted")
    report = max(weighted.glob("evaluations/*/report.json"), key=lambda path: path.stat().st_mtime)
    stored = {row["key"]: row["metrics"] for row in json.loads(report.read_text())["rows"]}["ensemble"]["nll"]["value"]
    plain = sve.json("compare", trained, noisy, *QUICK)["pairs"][0]["differences"]
    for order, here, there in (((trained, weighted), "other", "reference"), ((weighted, trained), "reference", "other")):
        found = sve.json("compare", *order, *QUICK)["pairs"][0]["differences"]
        (row,) = [row for row in found if row["key"] == "nll"]
        (unweighted,) = [row for row in plain if row["key"] == "nll"]
        assert row[here] == pytest.approx(stored) and row[here] != unweighted["other"]
        assert row[there] == pytest.approx(unweighted["reference"])
    assert sve.json("members", weighted, "--bootstrap", 100)["settings"]["aggregate"] == "probs", "subsets have no weights"
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: {nll: {slack: 100}}\n")
    for judged, baseline in ((weighted, trained), (trained, weighted)):
        way = ("--aggregate", "weighted") if judged == weighted else ()
        (check,) = sve.json("evaluate", judged, *way, "--gate", gates, "--baseline", baseline)["gate"]["checks"]
        values = {weighted: stored, trained: unweighted["reference"]}
        assert check["worsening"] == pytest.approx(values[judged] - values[baseline])


def test_files_without_ids_and_with_a_column_for_each_class(sve: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels_N = rng.integers(3, size=60)
    for name in ("one", "two"):
        probs_NC = rng.dirichlet([1.0] * 3, size=60) * 0.5 + 0.5 * np.eye(3)[labels_N]
        np.savez(tmp_path / f"{name}.npz", probs=probs_NC, labels=labels_N, classes=["a", "b", "c"])
        rows = [",".join([*map(repr, map(float, row)), "abc"[label]]) for row, label in zip(probs_NC, labels_N, strict=True)]
        (tmp_path / f"{name}.csv").write_text("a,b,c,label\n" + "\n".join(rows) + "\n")
    sve("compare", "one.npz", "two.npz", "--metrics", "nll", "--permutations", 0)
    assert "Neither file has ids" in sve.err and "paired by row all the same" in sve.err and "by id" not in sve.err
    wide = ["--prob-columns", "a,b,c", "--bootstrap", 100, "--permutations", 0, "--metrics", "nll"]
    found = sve.json("compare", "one.npz", "two.csv", *wide)["pairs"][0]["differences"][0]
    same = sve.json("compare", "one.npz", "two.npz", *wide[2:])["pairs"][0]["differences"][0]
    assert found["difference"] == pytest.approx(same["difference"], abs=1e-12)
    sve.check_refuses("compare", "one.npz", "two.csv", saying="--prob-columns")
    sve.check_refuses("compare", "one.npz", "x.txt", saying="There is neither a run nor a predictions file at 'x.txt'")
    sve.check_refuses("members", "two.csv", *wide[:2], saying="one member")


def test_a_temperature_is_used_with_the_averaging_it_was_fitted_for() -> None:
    rng = np.random.default_rng(7)
    labels_N = rng.integers(4, size=800)
    logits_MNC = rng.normal(size=(3, 800, 4)) * 3
    logits_MNC[:, np.arange(800), labels_N] += 3
    test = Predictions(logits_MNC.astype(np.float32), labels_N, [str(i) for i in range(800)], list("abcd"), "d", "test")
    ways = {"A": "logits", "B": "probs"}
    sides = [System(name, test, temperature=fit_temperature(test, how), aggregate=how) for name, how in ways.items()]
    options = Options(metrics=("nll",), bootstrap=20, permutations=0, scaled=True)
    for one, other in (sides, sides[::-1]):
        [pair] = compare([one, other], options).pairs
        scaled = {row.key: row for row in pair.differences}["temperature.nll"]
        for side, value in ((one, scaled.reference), (other, scaled.other)):
            assert side.temperature is not None
            expected = METRICS.resolve("nll").compute(aggregate(side.temperature.apply(test), side.aggregate))
            assert value == pytest.approx(expected)
        assert "After temperature scaling each is on its own" in " ".join(pair.notes)


def test_too_few_permutations_for_the_correction_are_told(sve: Any, trained: Path, noisy: Path) -> None:
    def notes(permutations: int) -> list[str]:
        found = sve.json("compare", trained, noisy, "--metrics", "nll", "--bootstrap", 100, "--permutations", permutations)
        return [note for note in found["pairs"][0]["notes"] if "permutations no p-value" in note]

    few = notes(19)
    assert "With 19 permutations no p-value is below 0.05, and after the correction for" in few[0]
    enough = int(few[0].split("--permutations ")[1].split(" ")[0].replace(",", ""))
    assert notes(enough) == notes(0) == [] and notes(enough - 1)
