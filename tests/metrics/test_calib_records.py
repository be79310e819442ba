"""Recorded softmax outputs of real networks against an independent, naive loop."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

ACCURACY = {"cifar10_wideresnet-16-4": 0.9109, "cifar100_densenet-bc-100": 0.7541}  # as published with the records


def load_records(name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = os.environ.get("SVE_DATA_DIR")
    if not folder:
        pytest.skip("SVE_DATA_DIR is not set, so there are no recorded predictions.")
    path = Path(folder) / "calib_records" / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"SVE_DATA_DIR has no calib_records/{name}.parquet.")
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    probs = table["probs"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return probs.astype(np.float64), table["label"].to_numpy()


def naive_ece(view: Aggregated, bins: int) -> float:
    """Bins by their edges, one sample at a time."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, predicted, label in zip(view.confidence_N, view.predicted_N, view.labels_N, strict=True):
        b = next(b for b in range(bins) if bins * confidence <= b + 1 or b == bins - 1)
        members[b].append((float(confidence), bool(predicted == label)))
    total = 0.0
    for inside in members:
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / view.n * abs(accuracy - math.fsum(c for c, _ in inside) / len(inside))
    return total


@pytest.mark.parametrize("name", list(ACCURACY))
def test_spot_check(name: str) -> None:
    probs, labels = load_records(name)
    logits = np.log(np.maximum(probs, 1e-45)).astype(np.float32)[None]
    classes = [str(c) for c in range(probs.shape[1])]
    view = aggregate(Predictions(logits, labels, [str(i) for i in range(len(labels))], classes, name, "test"))
    assert METRICS.resolve("accuracy").compute(view) == pytest.approx(ACCURACY[name], abs=2e-4)
    assert METRICS.resolve("ece_top1_w15").compute(view) == pytest.approx(naive_ece(view, 15), abs=1e-12)
    confidence = probs.max(axis=1) / probs.sum(axis=1)
    np.testing.assert_allclose(view.confidence_N, confidence, atol=2e-6)
    # No tie spans a cut by more than float noise here: 15 slices of the sorted samples are the same bins but for shared rows.
    order = np.argsort(view.confidence_N, kind="stable")
    gaps = [abs((view.correct_N[s] - view.confidence_N[s]).sum()) for s in np.array_split(order, 15)]
    assert METRICS.resolve("ece_top1_m15").compute(view) == pytest.approx(sum(gaps) / view.n, abs=2e-3)
    risks = np.cumsum(1.0 - view.correct_N[order[::-1]]) / np.arange(1, view.n + 1)
    assert METRICS.resolve("aurc").compute(view) == pytest.approx(float(risks.mean()), abs=2e-3)
