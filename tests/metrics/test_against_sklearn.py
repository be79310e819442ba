"""Against scikit-learn on random and edge input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS


def random_predictions(n: int, classes: int, members: int, seed: int, occurring: int | None = None) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(occurring or classes, size=n)
    logits = rng.normal(size=(members, n, classes)).astype(np.float32) * 2
    logits[:, np.arange(n), labels] += 1.5
    return Predictions(logits, labels, [f"s{i}" for i in range(n)], [str(c) for c in range(classes)], "toy", "test")


@pytest.mark.parametrize(
    ("n", "classes", "members", "occurring"),
    [(300, 7, 3, None), (40, 30, 1, None), (50, 6, 4, 2), (1, 3, 2, None), (20, 2, 1, None)],
)
def test_agrees(n: int, classes: int, members: int, occurring: int | None) -> None:
    predictions = random_predictions(n, classes, members, n, occurring)
    view, labels = aggregate(predictions), predictions.labels_N
    probs = softmax(predictions.logits_MNC.astype(np.float64), axis=2).mean(axis=0)
    every, onehot = list(range(classes)), np.eye(classes)[labels]
    expected = {
        "accuracy": accuracy_score(labels, probs.argmax(axis=1)),
        "macro_f1": f1_score(labels, probs.argmax(axis=1), average="macro"),
        "nll": log_loss(labels, probs, labels=every),
        "brier": sum(brier_score_loss(onehot[:, c], probs[:, c], pos_label=1) for c in every),
    }
    for name, value in expected.items():
        assert METRICS.resolve(name).compute(view) == pytest.approx(value, rel=1e-9), name


def test_extreme_logits_keep_their_log_likelihood() -> None:
    """p(label) underflows to 0 as a probability; the NLL must still be 2000, not infinite and not clipped."""
    logits = np.array([[[1000.0, -1000.0]]], dtype=np.float32)
    predictions = Predictions(logits, np.array([1]), ["a"], ["x", "y"], "toy", "test")
    assert METRICS.resolve("nll").compute(aggregate(predictions)) == pytest.approx(2000.0)
