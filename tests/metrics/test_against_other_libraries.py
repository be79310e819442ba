"""Against netcal and torchmetrics, on random and on edge input. Where they differ, the fault is theirs and is tested by name."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # netcal's dependencies warn when imported
    netcal = pytest.importorskip("netcal.metrics")

RECORDS = ("cifar10_lenet-5", "cifar10_wideresnet-16-4", "cifar100_lenet-5", "cifar100_wideresnet-16-4", "cifar100_densenet-bc-100")


def view_of(probs: np.ndarray, labels: np.ndarray) -> Aggregated:
    with np.errstate(divide="ignore"):
        logits = np.where(probs > 0, np.log(probs), -1e9)[None]
    names = [str(c) for c in range(probs.shape[1])]
    return aggregate(Predictions(logits, labels, [str(i) for i in range(len(labels))], names, "toy", "test"))


def random_view(n: int, classes: int, seed: int) -> Aggregated:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = 2 * rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1.5
    return view_of(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels)


def value(name: str, view: Aggregated, bins: int = 15) -> float:
    return float(METRICS.resolve(name).compute(view, bins))


def of_torchmetrics(view: Aggregated, bins: int, norm: str = "l1") -> float:
    probs, labels = torch.from_numpy(view.probs_NC), torch.from_numpy(view.labels_N)
    found = torchmetrics.multiclass_calibration_error(probs, labels, view.n_classes, n_bins=bins, norm=norm)
    return float(found)


def of_netcal(view: Aggregated, bins: int, kind: str = "ECE") -> float:
    # One column is the confidence of a binary event: then nothing is made of the probabilities but their bins.
    return float(getattr(netcal, kind)(bins).measure(view.confidence_N, view.correct_N.astype(int)))


@pytest.mark.parametrize(("n", "classes"), [(500, 7), (300, 2), (40, 30), (1, 3)])
@pytest.mark.parametrize("bins", [10, 15])
def test_both_agree_on_random_input(n: int, classes: int, bins: int) -> None:
    view = random_view(n, classes, n)
    assert value("ece_top1_w15", view, bins) == pytest.approx(of_torchmetrics(view, bins), abs=1e-6)
    assert value("mce_top1_w15", view, bins) == pytest.approx(of_torchmetrics(view, bins, "max"), abs=1e-6)
    assert value("ece_top1_w15", view, bins) == pytest.approx(of_netcal(view, bins), abs=1e-6)
    assert value("mce_top1_w15", view, bins) == pytest.approx(of_netcal(view, bins, "MCE"), abs=1e-6)


def test_torchmetrics_gives_confidence_one_a_bin_of_its_own() -> None:
    """Two samples of the last bin, .98 (right) and exactly 1 (wrong): together |1/2 - .99| = .49; apart (.02 + 1) / 2."""
    view = view_of(np.array([[0.98, 0.02], [1.0, 0.0]]), np.array([0, 1]))
    assert value("ece_top1_w15", view) == pytest.approx(0.49) == of_netcal(view, 15)
    assert of_torchmetrics(view, 15) == pytest.approx(0.51)


def test_a_class_that_never_occurs_and_flat_probabilities() -> None:
    flat = view_of(np.full((6, 3), 1 / 3), np.array([0, 1, 0, 1, 0, 0]))
    assert value("ece_top1_w15", flat) == pytest.approx(abs(4 / 6 - 1 / 3)) == pytest.approx(of_netcal(flat, 15))
    assert value("ece_top1_w15", flat) == pytest.approx(of_torchmetrics(flat, 15), abs=1e-6)


def test_the_others_bins_are_closed_below() -> None:
    """Confidence .5 with 4 bins lies on a cut: here it counts to (.25, .5], elsewhere to [.5, .75)."""
    view = view_of(np.array([[0.5, 0.5], [0.7, 0.3]]), np.array([0, 1]))
    assert value("ece_top1_w15", view, 4) == pytest.approx((0.5 + 0.7) / 2), "two bins"
    assert of_netcal(view, 4) == pytest.approx(0.1) == pytest.approx(of_torchmetrics(view, 4)), "one bin: |1/2 - .6|"


def test_netcals_ace_counts_bins_alike() -> None:
    """ACE is the mean over bins of equal mass, not weighted. With n a multiple of the bins that is the same number."""
    view = random_view(450, 5, 1)
    assert value("ece_top1_m15", view) == pytest.approx(of_netcal(view, 15, "ACE"), abs=5e-3)


def test_pytorch_oods_calibration_error_and_aurra() -> None:
    """Bins of 30 samples are ours of equal mass where 15 of them make up n; AURRA is the mean accuracy, so 1 - AURC."""
    theirs = pytest.importorskip("pytorch_ood.metrics")
    view = random_view(450, 5, 1)
    confidence, right = torch.from_numpy(view.confidence_N), torch.from_numpy(view.correct_N)
    assert value("ece_top1_m15", view) == pytest.approx(theirs.calibration_error(confidence, right, "1", 30), abs=1e-12)
    assert value("aurc", view) == pytest.approx(1 - theirs.aurra(confidence, right), abs=1e-12)


def test_pytorch_oods_last_bin_holds_the_rest() -> None:
    """45 samples in bins of 20 are bins of 20 and 25, where ours share evenly; its release before 0.4 left the last one out."""
    theirs = pytest.importorskip("pytorch_ood.metrics")
    view = random_view(45, 5, 2)
    confidence, right = torch.from_numpy(view.confidence_N), torch.from_numpy(view.correct_N)
    found = theirs.calibration_error(confidence, right, "1", 20)
    gaps = (view.correct_N - view.confidence_N)[np.argsort(view.confidence_N)]
    assert found == pytest.approx((abs(gaps[:20].sum()) + abs(gaps[20:].sum())) / 45, abs=1e-12)


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_networks(name: str) -> None:
    """All five recorded networks: the calibration error with 15 bins is torchmetrics' to 1e-6.

    Confidences of exactly 1.0 are moved by 1e-9 for torchmetrics, which would give them a bin of their own.
    """
    folder = os.environ.get("SVE_DATA_DIR")
    path = Path(folder or "") / "calib_records" / f"{name}.parquet"
    if not folder or not path.is_file():
        pytest.skip(f"SVE_DATA_DIR has no calib_records/{name}.parquet.")
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    probs = table["probs"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1).astype(np.float64)
    view = view_of(probs, table["label"].to_numpy())
    below = torch.from_numpy(np.minimum(view.confidence_N, 1 - 1e-9))
    right = torch.from_numpy(view.correct_N.astype(np.int64))
    found = float(torchmetrics.binary_calibration_error(below, right, n_bins=15, norm="l1"))
    assert value("ece_top1_w15", view) == pytest.approx(found, abs=1e-6)
    assert value("ece_top1_w15", view) == pytest.approx(of_netcal(view, 15), abs=1e-6)
