"""`sve export --to distilled` end to end on a tiny run: trained once, certified, measured beside the ensemble; `sve_cli.load`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sve_cli
from sve_cli.errors import DataError
from sve_cli.predictions import Predictions
from sve_cli.workflows.distil import KeyedDraws
from sve_cli.workflows.distil_scores import Calibrated, Comparison

EXPORT = ("export", "--to", "distilled", "--distil-epochs", "1")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The trained run, to write into."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_it_is_trained_once_certified_and_measured(sve: Any, run: Path, tmp_path: Path) -> None:
    document = sve.json(*EXPORT, run, "--single", run)[0]
    folder, certificate = run / "exports" / "distilled", document["certificate"]
    facts = certificate["facts"]
    assert facts["systems"].keys() >= {"ensemble", "distilled", "averaged", "single"}
    for row in facts["systems"].values():
        assert 0 <= row["accuracy"] <= 1 and row["nll"] > 0
    assert facts["systems"]["distilled"]["auroc_mutual_information"].keys() == {"digits:ood"}
    assert facts["distillation"]["epochs"] == 1 and facts["distillation"]["selected"]["validation_kl"] > 0
    assert facts["kept_of_gain"] == {"nll": None, "ece_top1_w15": None}  # the single run is the ensemble itself
    assert certificate["gaps"]["outputs"].keys() == {"log_precision", "entropy", "mutual_information"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| distilled |" in card and "the ensemble gains nothing over it" in card
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
    found = Comparison(10, ["far"], rows, {"nll": 0.75})
    aims = found.aims()
    assert aims["nll_relative"] == pytest.approx(0.1) and aims["met"] == {"nll": False, "auroc": False}
    assert aims["auroc_differences"] == pytest.approx({"auroc_entropy, far": -0.005, "auroc_mutual_information, far": -0.02})
    assert "75% of the ensemble's gain is kept" in found.to_markdown()
    close = {**rows, "distilled": row(0.205, 0.02, 0.945, 0.895)}
    assert Comparison(10, ["far"], close).aims()["met"] == {"nll": True, "auroc": True}
    json.dumps(found.facts())


def test_a_temperature_divides_the_logits() -> None:
    logits = np.log(np.array([[[0.8, 0.2]], [[0.4, 0.6]]])).astype(np.float32)
    predictions = Predictions(logits, np.array([0]), ["a"], ["x", "y"], "toy", "test")
    assert Calibrated(1.0, "probs").view(predictions).probs_NC[0, 0] == pytest.approx(0.6, abs=1e-6)
    warm = Calibrated(2.0, "probs").view(predictions).probs_NC[0, 0]
    assert warm == pytest.approx((2 / 3 + (2 / 3) ** 0.5 / (1 + (2 / 3) ** 0.5)) / 2, abs=1e-6)
