"""What the figures of a report are drawn from: the risk-coverage curve, and the uncertainty of right and wrong answers."""

from __future__ import annotations

import numpy as np
import pytest

from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.answers import right_and_wrong
from sve_cli.metrics.risk_curve import risk_curve
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS


def made(n: int, members: int = 3, seed: int = 0, unknown: int = 0) -> Aggregated:
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    logits = rng.normal(size=(members, n, 4)).astype(np.float32)
    logits[:, np.arange(n), labels] += 1.0
    labels[:unknown] = -1
    ids = [f"s{i}" for i in range(n)]
    return aggregate(Predictions(logits, labels, ids, list("abcd"), "toy", "test"))


def test_the_curve_passes_through_the_metrics() -> None:
    view = made(1000)
    curve = risk_curve(view)
    assert curve is not None and curve.coverage[-1] == 1.0 and len(curve.coverage) == 100
    for percent in (80, 90, 95):
        metric = METRICS.resolve(f"risk_at_{percent}").compute(view)
        assert curve.coverage[percent - 1] == percent / 100 and curve.risk[percent - 1] == pytest.approx(metric, abs=1e-12)
    errors = 1.0 - METRICS.resolve("accuracy").compute(view)
    assert curve.random == pytest.approx(errors) == curve.risk[-1] == curve.oracle[-1]
    assert all(
        o <= r + 1e-12 and low <= r <= high for o, r, low, high in zip(curve.oracle, curve.risk, curve.low, curve.high, strict=True)
    )
    every = risk_curve(view, points=1000)
    assert every is not None and np.mean(every.risk) == pytest.approx(METRICS.resolve("aurc").compute(view), abs=1e-12)
    best = np.mean(every.risk) - np.mean(every.oracle)
    assert best == pytest.approx(METRICS.resolve("eaurc").compute(view), abs=1e-12)


def test_ties_are_spread_evenly() -> None:
    logits = np.zeros((1, 4, 2), dtype=np.float32)
    logits[0, :, 0] = [5.0, 1.0, 1.0, 1.0]  # one sure, three equally sure, of which one is wrong
    view = aggregate(Predictions(logits, np.array([0, 0, 1, 0]), list("abcd"), ["x", "y"], "toy", "test"))
    curve = risk_curve(view)
    assert curve is not None and curve.coverage == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0.0, (1 / 3) / 2, (2 / 3) / 3, 0.25]) and curve.oracle == [0.0, 0.0, 0.0, 0.25]


def test_right_and_wrong_answers_add_up() -> None:
    view = made(500, unknown=20)
    right, wrong = right_and_wrong(view)
    labelled = view.labelled()
    assert (right.key, wrong.key) == ("right", "wrong") and right.n + wrong.n == labelled.n == 480
    assert right.n == labelled.correct_N.sum() and right.edges == wrong.edges
    assert (sum(right.counts), sum(wrong.counts)) == (right.n, wrong.n)
    for key, values_N in (("entropy_mean", labelled.entropy_N), ("mutual_information_mean", labelled.mutual_information_N)):
        mean = (right.n * right.metrics[key].value + wrong.n * wrong.metrics[key].value) / 480
        assert mean == pytest.approx(values_N.mean())
    total, half = right.metrics["entropy_mean"], 1.959964 * labelled.entropy_N[labelled.correct_N == 1].std(ddof=1) / right.n**0.5
    assert total.high == pytest.approx(total.value + half, rel=1e-6) and wrong.metrics["entropy_mean"].value > total.value


def test_nothing_without_labels_and_no_numbers_without_errors() -> None:
    nobody = made(5, unknown=5)
    assert risk_curve(nobody) is None and right_and_wrong(nobody) == []
    logits = np.array([[[9.0, 0.0]]], dtype=np.float32)
    one = aggregate(Predictions(logits, np.array([0]), ["a"], ["x", "y"], "toy", "test"))
    right, wrong = right_and_wrong(one)
    assert wrong.n == 0 and wrong.metrics == {} and right.metrics["entropy_mean"].low is None
    curve = risk_curve(one)
    assert curve is not None and curve.risk == [0.0] and curve.coverage == [1.0]
