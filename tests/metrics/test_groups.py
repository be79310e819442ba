"""Many samples: random groups that are resampled together, and log-probabilities made block by block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sve_cli.metrics import aggregate as aggregate_module
from sve_cli.metrics import distribution
from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.intervals import how_resampled, measure
from sve_cli.metrics.per_class import per_class
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

N = 90


def made(n: int = N, varying: bool = True, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 6, size=n) if varying else np.full(n, 5)
    mask = np.arange(5) < counts[:, None]
    logits = (1.5 * rng.normal(size=(2, n, 5))).astype(np.float32)
    soft = np.where(mask, rng.gamma(0.5, size=mask.shape), 0.0)
    soft = (soft / soft.sum(axis=1, keepdims=True)).astype(np.float32)
    ids = [str(i) for i in range(n)]
    mask_NC = mask if varying else None
    return Predictions(logits, rng.integers(counts), ids, list("ABCDE"), "mc", "test", mask_NC=mask_NC, soft_labels_NC=soft)


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize("name", list(METRICS))
def test_a_group_counts_as_often_as_its_samples(name: str, varying: bool) -> None:
    view, rng = aggregate(made(varying=varying)), np.random.default_rng(1)
    units = view.in_units(20, rng)
    assert units.unit_N is not None and set(np.bincount(units.unit_N)) == {4, 5}
    weights_UR = rng.integers(0, 4, size=(20, 6)).astype(np.float64)
    by_group = METRICS.resolve(name).prepare(units, 15)(weights_UR)
    by_sample = METRICS.resolve(name).prepare(view, 15)(weights_UR[units.unit_N])
    np.testing.assert_allclose(by_group, by_sample, atol=1e-12)


@pytest.mark.parametrize("varying", [True, False])
def test_blocks_change_nothing(varying: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = made(varying=varying)
    whole = aggregate(predictions)
    monkeypatch.setattr(aggregate_module, "KEPT", 0)
    monkeypatch.setattr(distribution, "BLOCK", 35)  # 7 rows
    blocks = aggregate(predictions)
    assert blocks.distribution.kept_NC is None and len(list(blocks.distribution.blocks())) == 13
    index = np.array([5, 80, 3, 3])
    for one, other in ((blocks, whole), (blocks.part(index), whole.part(index)), (blocks.part(index).part(index[:0]), None)):
        if other is None:
            assert one.n == 0
            continue
        np.testing.assert_allclose(one.log_probs_NC, other.log_probs_NC, atol=1e-14)
        for name in METRICS:
            metric = METRICS.resolve(name)
            assert metric.compute(one) == pytest.approx(metric.compute(other), abs=1e-12), name
    names = list("ABCDE")
    assert [r.ece for r in per_class(blocks, 15, names)] == pytest.approx([r.ece for r in per_class(whole, 15, names)], abs=1e-14)


def test_intervals_of_groups_are_those_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same values, and widths that agree as far as 1,000 resamples of either can tell."""
    view = aggregate(replace(made(6000, varying=False), soft_labels_NC=None))
    names = ("nll", "brier", "aurc", "eaurc", "risk_at_80", "ece_top1_w15", "ece_top1_m15", "macro_f1")
    metrics = [METRICS.resolve(name) for name in names]
    alone = measure(view, metrics, 15, 1000, 0.95, 0)
    grouped = measure(view, metrics, 15, 1000, 0.95, 0, many=5000)
    for key, value in alone.items():
        other = grouped[key]
        assert other.value == pytest.approx(value.value, abs=1e-12), key
        assert "2,000 random groups" in other.definition and "groups" not in value.definition
        assert None not in (value.low, value.high, other.low, other.high)
        width, same = (v.high - v.low for v in (value, other) if v.high is not None and v.low is not None)
        assert same == pytest.approx(width, rel=0.2), key
        assert other.low is not None and other.high is not None and other.low <= other.value <= other.high
    assert how_resampled(60_000, 500) == "500 resamples of 2,000 random groups of 30 or 31 samples"
    assert how_resampled(400, 500) == "500 resamples of single samples" and how_resampled(400, 0).startswith("none")
