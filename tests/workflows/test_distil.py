"""`sve export --to distilled` end to end on a tiny run: trained once, certified, measured beside the ensemble; `sve_cli.load`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sve_cli
from sve_cli import cli
from sve_cli.errors import DataError, SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.rundir import RunDir, file_digest
from sve_cli.scoring import score_ood
from sve_cli.workflows import distil_scores, export_results
from sve_cli.workflows.distil import KeyedDraws
from sve_cli.workflows.distil_scores import (
    Calibrated,
    Comparison,
    Interval,
    Kept,
    Single,
    System,
    compare_systems,
    kept_of_gain,
    open_single,
)
from sve_cli.workflows.stored import saved_predictions
from tests.workflows.conftest import TINY

EXPORT = ("export", "--to", "distilled", "--distil-epochs", "1")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The trained run, to write into."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished run of one member on the same digits. Read only."""
    lone = tmp_path_factory.mktemp("lone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVE_CACHE_DIR", str(shared_cache))
        assert cli.run(["train", "quickstart", *TINY, "method.members=1", "--limit", "48", "--out", str(lone)]) == 0
    return lone


@pytest.mark.slow
def test_it_is_trained_once_certified_and_measured(sve: Any, run: Path, lone: Path, tmp_path: Path) -> None:
    document = sve.json(*EXPORT, run, "--single", lone)[0]
    folder, certificate = run / "exports" / "distilled", document["certificate"]
    facts = certificate["facts"]
    assert facts["systems"].keys() >= {"ensemble", "distilled", "averaged", "single"}
    for row in facts["systems"].values():
        assert 0 <= row["accuracy"] <= 1 and row["nll"] > 0
    assert facts["systems"]["distilled"]["auroc_mutual_information"].keys() == {"digits:ood"}
    assert facts["distillation"]["epochs"] == 1 and facts["distillation"]["selected"]["validation_kl"] > 0
    assert facts["kept_of_gain"].keys() == facts["kept_of_gain_interval"].keys() == {"nll", "ece_top1_w15"}
    gain, systems = facts["gain_over_single"]["nll"], facts["systems"]
    assert gain["value"] == pytest.approx(systems["single"]["nll"] - systems["ensemble"]["nll"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert facts["test_samples"] == 48 and facts["unlabelled_test_samples"] == 0
    assert certificate["gaps"]["outputs"].keys() == {"log_precision", "entropy", "mutual_information"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| distilled |" in card and "NLL against the single run: " in card and "On all 48 test samples" in card
    kept = sve.digests(run / "distilled")
    assert len(kept) == 2 and not list((run / "distilled").glob(".*"))

    loaded = sve_cli.load(folder)
    pixels = [np.full((8, 8, 3), k * 20, dtype=np.uint8) for k in range(3)]
    answers = loaded.predict(pixels)
    assert len(answers.labels) == 3 and answers.probabilities.shape == (3, 8)
    np.testing.assert_allclose(answers.probabilities.sum(1), 1)
    np.testing.assert_allclose(answers.entropy, answers.aleatoric + answers.epistemic)
    assert (answers.epistemic > 0).all() and (answers.epistemic < answers.entropy).all()
    np.testing.assert_allclose(loaded.predict(pixels[1]).epistemic, answers.epistemic[1:2], rtol=1e-3)
    with pytest.raises(DataError):
        loaded.predict(["a text"])
    with safe_open(folder / "evidence.safetensors", framework="numpy") as file:
        assert file.get_tensor("weight").ndim == 1 and "log-precision =" in file.metadata()["format"]


def test_what_cannot_work_is_refused_before_the_training(sve: Any, run: Path, tmp_path: Path) -> None:
    (run / "exports" / "distilled").mkdir(parents=True)
    (run / "exports" / "distilled" / "mine").write_text("mine")
    sve.check_refuses(*EXPORT, run, saying="exists and is not empty")
    elsewhere = ("--out", tmp_path / "out")
    sve.check_refuses(*EXPORT, run, *elsewhere, "--single", tmp_path, saying="There is no run at")
    sve.check_refuses(*EXPORT, run, *elsewhere, "--single", run, saying="has 2 members, and --single names a run of one.")
    sve.check_refuses("export", run, "--to", "distilled", "--distil-epochs", "0", *elsewhere, saying="at least one")
    sve.check_refuses(*EXPORT, run, *elsewhere, "--distil-lr", "0", saying="learning rate is above 0")
    for own in ("test", "digits:test"):
        sve.check_refuses(*EXPORT, run, *elsewhere, "--unlabelled", own, saying="a split of the run's own data")
    assert not (run / "distilled").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nothing_is_computed_or_trained_a_second_time(sve: Any, run: Path, tmp_path: Path) -> None:
    sve(*EXPORT, run)
    kept = sve.digests(run / "distilled")
    sve(*EXPORT, run, "--out", tmp_path / "again")
    assert "Going on at step 3 of 3" in sve.err
    assert sve.digests(run / "distilled") == kept
    for name in ("model.safetensors", "evidence.safetensors"):
        one, two = (folder / "distilled" / name for folder in (run / "exports", tmp_path / "again"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_unlabelled_inputs_are_learnt_from(sve: Any, run: Path) -> None:
    certificate = sve.json(*EXPORT, run, "--unlabelled", "digits:ood", "--distil-rows", "20")[0]["certificate"]
    found = certificate["facts"]["distillation"]
    assert found["unlabelled"] == ["digits:ood"] and found["rows"] > 20
    card = (run / "exports" / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "digits:ood without labels" in card and "'digits:ood' was learnt from" in card


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_loads_and_goes_on(sve: Any, run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    sve(*EXPORT, whole)
    process = sve.start(*EXPORT, run)
    deadline = time.monotonic() + 120
    while not list((run / "distilled").glob("teacher-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() != 0
    assert not [p for p in (run / "exports").glob("*")]
    sve(*EXPORT, run)
    name = "exports/distilled/model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


class Numbers:
    """An encoded set whose augmentation is the draw itself."""

    labels_N = np.arange(3)
    lengths_N = None
    mask_NC = None
    augments = True

    def __len__(self) -> int:
        return 3

    def batch(self, rows_B: np.ndarray, generator: Any = None) -> dict[str, Any]:
        drawn = torch.zeros(len(rows_B)) if generator is None else torch.rand(len(rows_B), generator=generator)
        return {"x": torch.from_numpy(rows_B) + drawn}


def test_augmented_inputs_are_drawn_once_by_their_row() -> None:
    rows: Any = Numbers()
    draws = KeyedDraws(rows, 0)
    assert len(draws) == 6 and not draws.augments
    together = draws.batch(np.arange(6))["x"]
    assert together[:3].tolist() == [0, 1, 2]
    assert all(k < x < k + 1 for k, x in enumerate(together[3:].tolist()))
    assert len({x % 1 for x in together[3:].tolist()}) == 3
    assert draws.batch(np.array([4, 1]))["x"].tolist() == [together[4].item(), 1.0]
    assert KeyedDraws(rows, 1).batch(np.array([4]))["x"].item() != together[4].item()


def test_aims_and_shares_by_hand() -> None:
    def row(nll: float, ece: float, entropy: float, mutual: float) -> dict[str, Any]:
        return {
            "accuracy": 0.9, "nll": nll, "ece_top1_w15": ece,
            "auroc_entropy": {"far": entropy}, "auroc_mutual_information": {"far": mutual},
        }  # fmt: skip

    rows = {"ensemble": row(0.2, 0.01, 0.95, 0.9), "distilled": row(0.22, 0.02, 0.945, 0.88)}
    found = Comparison(10, ["far"], rows, {"nll": Kept(Interval(0.08, 0.05, 0.11), Interval(0.75, 0.6, 0.914))}, unlabelled=2)
    aims = found.aims()
    assert aims["nll_relative"] == pytest.approx(0.1) and aims["met"] == {"nll": False, "auroc": False}
    assert aims["auroc_differences"] == pytest.approx({"auroc_entropy, far": -0.005, "auroc_mutual_information, far": -0.02})
    card = found.to_markdown()
    assert "gains 0.0800 (interval 0.0500 to 0.1100); 75 % of the ensemble's gain is kept (interval 60 to 91 %)." in card
    assert "On the 10 labelled of 12 test samples;" in card
    close = {**rows, "distilled": row(0.205, 0.02, 0.945, 0.895)}
    assert Comparison(10, ["far"], close).aims()["met"] == {"nll": True, "auroc": True}
    facts = json.loads(json.dumps(found.facts()))
    assert facts["kept_of_gain"] == {"nll": 0.75} and facts["kept_of_gain_interval"] == {"nll": {"low": 0.6, "high": 0.914}}
    assert facts["gain_over_single"] == {"nll": {"value": 0.08, "low": 0.05, "high": 0.11}} and facts["test_samples"] == 10
    for gain, words in (
        (Interval(0.01, -0.02, 0.04), "no gain of the ensemble"),
        (Interval(-0.1, -0.2, -0.05), "is worse than it"),
    ):
        assert words in Comparison(10, ["far"], rows, {"nll": Kept(gain, None)}).to_markdown()


def test_a_temperature_divides_the_logits() -> None:
    logits = np.log(np.array([[[0.8, 0.2]], [[0.4, 0.6]]])).astype(np.float32)
    predictions = Predictions(logits, np.array([0]), ["a"], ["x", "y"], "toy", "test")
    assert Calibrated(1.0, "probs").view(predictions).probs_NC[0, 0] == pytest.approx(0.6, abs=1e-6)
    warm = Calibrated(2.0, "probs").view(predictions).probs_NC[0, 0]
    assert warm == pytest.approx((2 / 3 + (2 / 3) ** 0.5 / (1 + (2 / 3) ** 0.5)) / 2, abs=1e-6)


def questions(options_N: np.ndarray, name: str, members: int = 4) -> Predictions:
    """Random answers to questions with so many of five options."""
    rng, n = np.random.default_rng(len(name)), len(options_N)
    logits_MNC = rng.normal(size=(1, n, 5)) + rng.normal(0, 0.5, (members, n, 5))
    mask_NC = np.arange(5)[None] < options_N[:, None]
    ids = [str(i) for i in range(n)]
    return Predictions(
        logits_MNC.astype(np.float32), np.zeros(n, dtype=np.int64), ids, list("ABCDE"), name, "test", mask_NC=mask_NC
    )


def test_both_sides_of_an_auroc_are_in_one_unit() -> None:
    """The number of options varies in the test set and not in the other: nats there would beat shares of ln K here."""
    sets = {"test": questions(np.where(np.arange(300) % 50 == 0, 3, 5), "arc"), "other": questions(np.full(300, 5), "csqa")}
    spec = EvaluateSpec(bootstrap=0, ood_scores=["entropy", "mutual_information"])
    (report,) = score_ood(sets["test"], [sets["other"]], spec)
    row = System(sets, Calibrated(1.0, "probs")).row()
    assert row["auroc_entropy"] == {"other": report.scores["entropy"]["auroc_ood"].value}
    assert row["auroc_mutual_information"] == {"other": report.scores["mutual_information"]["auroc_ood"].value}
    # One network whose own mutual information, in nats, is that of the members: the same division, the same AUROC.
    nats = {name: aggregate(found, per_option=False).mutual_information_N for name, found in sets.items()}
    student = System({name: found.member(0) for name, found in sets.items()}, Calibrated(1.0, "probs"), nats).row()
    assert student["auroc_mutual_information"] == pytest.approx(row["auroc_mutual_information"])
    alone = System({name: found.member(0) for name, found in sets.items()}, Calibrated(1.0, "probs")).row()
    assert alone["auroc_mutual_information"] == {}


def answers(labels_N: np.ndarray, noise: float, seed: int) -> Predictions:
    """One network's logits on samples of three classes, further off the more noise."""
    n = len(labels_N)
    logits_NC = 2.0 * np.eye(3)[labels_N] + np.random.default_rng(0).normal(size=(n, 3))
    logits_NC = logits_NC + np.random.default_rng(seed).normal(0, noise, size=(n, 3))
    return Predictions(logits_NC[None].astype(np.float32), labels_N, [f"test-{i}" for i in range(n)], list("abc"), "toy", "test")


def test_the_share_of_a_gain_has_an_interval_and_no_gain_has_no_share() -> None:
    labels_N = np.random.default_rng(1).integers(0, 3, 400)
    single, ensemble, distilled = (aggregate(answers(labels_N, noise, seed)) for seed, noise in enumerate((1.5, 0.0, 0.7), 1))
    spec = EvaluateSpec(bootstrap=500)
    found = kept_of_gain(single, ensemble, distilled, spec, 0)["nll"]
    losses = [-view.log_label_N for view in (single, ensemble, distilled)]
    gain_N, part_N = losses[0] - losses[1], losses[0] - losses[2]
    assert found.gain.value == pytest.approx(gain_N.mean()) and 0 < found.gain.low < found.gain.value < found.gain.high
    assert found.share is not None and found.share.value == pytest.approx(part_N.mean() / gain_N.mean())
    # Fieller's interval by the normal approximation: the roots of (mean of part - r gain)^2 = z^2 variance of it.
    (vp, cov), (_, vg) = np.cov(part_N, gain_N) / 400
    p, g, z2 = part_N.mean(), gain_N.mean(), 1.96**2
    high, low = np.roots([g**2 - z2 * vg, 2 * (z2 * cov - p * g), p**2 - z2 * vp])
    assert found.share.low == pytest.approx(low, abs=0.04) and found.share.high == pytest.approx(high, abs=0.04)
    # The same gain of another network, which is no better than chance: nothing is kept of what cannot be seen.
    other = kept_of_gain(aggregate(answers(labels_N, 0.7, 9)), aggregate(answers(labels_N, 0.7, 8)), distilled, spec, 0)["nll"]
    assert other.gain.low < 0 < other.gain.high and other.share is None
    quick = kept_of_gain(single, ensemble, distilled, EvaluateSpec(bootstrap=0), 0)["nll"]
    assert quick.share is not None and quick.share.low == pytest.approx(found.share.low, abs=0.04)


def test_what_is_scored_with_labels_says_how_many_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels_N = np.random.default_rng(1).integers(0, 3, 60)
    known, single = answers(labels_N, 0.0, 1), answers(labels_N, 1.0, 2)
    some = replace(known, labels_N=np.where(np.arange(60) < 20, -1, labels_N))
    monkeypatch.setattr(distil_scores, "_members", lambda *a: {"test": some})
    monkeypatch.setattr(distil_scores, "averaged_predictions", lambda *a: some)
    monkeypatch.setattr(distil_scores, "student_system", lambda *a: System({"test": some}, Calibrated(1.0, "probs")))
    session: Any = SimpleNamespace(
        recipe=SimpleNamespace(data=SimpleNamespace(ood=[], name="toy"), evaluate=EvaluateSpec(bootstrap=20), seed=0),
        base_ensemble=lambda: None,
        task=SimpleNamespace(modality="text"),
    )
    (tmp_path / "ensemble.safetensors").write_bytes(b"")
    folder: Any = SimpleNamespace(path=tmp_path)
    none: Any = None
    other = Single(tmp_path, replace(single, labels_N=some.labels_N), Calibrated(1.0, "probs"))
    found = compare_systems(session, folder, none, none, Calibrated(1.0, "probs"), other)
    assert (found.n, found.unlabelled) == (40, 20) and "On the 40 labelled of 60 test samples" in found.to_markdown()
    gain = found.rows["single"]["nll"] - found.rows["ensemble"]["nll"]
    assert found.kept["nll"].gain.value == pytest.approx(gain)
    # The results of every artifact's card.
    monkeypatch.setattr(export_results, "saved_predictions", lambda *a: some)
    prepared = {"distilled": SimpleNamespace(facts=found.facts())}
    results = export_results.results_of_run(session, folder, none, prepared)
    for claim in ("ensemble", "averaged", "live"):
        artifact: Any = SimpleNamespace(claim=claim, member=None)
        monkeypatch.setattr(export_results, "averaged_predictions", lambda *a: some)
        shown = results(artifact)
        assert shown is not None and shown.n == 40


def test_only_one_network_on_the_same_data_is_a_single_run(lone: Path) -> None:
    trained = RunDir.open(lone)
    test = saved_predictions(trained, "test", file_digest(lone / "ensemble.safetensors"))
    assert test is not None
    digest = json.loads((lone / "recipe.lock.json").read_text(encoding="utf-8"))["data"]["test"]

    def session_of(labels_N: np.ndarray, classes: list[str], ids_N: list[str], fingerprint: str) -> Any:
        own = SimpleNamespace(ids_N=ids_N, labels_N=labels_N, fingerprint=lambda: fingerprint)
        return SimpleNamespace(data=SimpleNamespace(test=own), task=SimpleNamespace(classes=classes))

    found = open_single(lone, session_of(test.labels_N, test.classes, test.ids_N, digest))
    assert found.test.ids_N == test.ids_N and found.calibrated.aggregate == "probs"
    other = (test.labels_N + 1) % len(test.classes)
    for changed, saying in (
        (session_of(other, test.classes, test.ids_N, digest), "was tested on other samples"),
        (session_of(test.labels_N, test.classes, test.ids_N, "other inputs"), "was tested on other samples"),
        (session_of(test.labels_N, test.classes, test.ids_N[::-1], digest), "was tested on other samples"),
        (session_of(test.labels_N, test.classes[::-1], test.ids_N, digest), "has other classes"),
    ):
        with pytest.raises(SveError, match=saying):
            open_single(lone, changed)
