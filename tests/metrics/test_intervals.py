"""Intervals hold the value, hold the true value about as often as they say, and are never of no width without a reason."""

from __future__ import annotations

import numpy as np
import pytest

from sve_cli.metrics import intervals
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.binning import bin_index
from sve_cli.metrics.intervals import gaps_interval, measure, unseen_share
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS
from sve_cli.report import MetricValue
from sve_cli.statistics import percentile_interval, wilson_interval

HARD = [name for name in METRICS if not METRICS.resolve(name).needs_soft_labels]
CALIBRATION = ["ece_top1_w15", "ece_top1_m15", "ece_debiased_w15"]


def view_of(logits: np.ndarray, labels: np.ndarray) -> Aggregated:
    ids, names = [str(i) for i in range(len(labels))], [str(c) for c in range(logits.shape[-1])]
    return aggregate(Predictions(logits.astype(np.float32), labels, ids, names, "toy", "test"))


def true_accuracy(confidence: np.ndarray, over: float) -> np.ndarray:
    """The true chance to be right; `over` = 0: calibrated."""
    return confidence - 4 * over * confidence * (1 - confidence)


def draw(n: int, over: float, rng: np.random.Generator) -> Aggregated:
    """Two classes, confidence uniform in .5 … 1."""
    confidence = rng.uniform(0.5, 1.0, size=n)
    labels = (rng.random(n) > true_accuracy(confidence, over)).astype(np.int64)
    return view_of(np.log(np.stack([confidence, 1 - confidence], axis=1))[None], labels)


def true_errors(over: float) -> dict[str, float]:
    """The gap has one sign everywhere, so that neither the sort of bins nor their number matters to the plain error."""
    confidence = np.linspace(0.5, 1.0, 200_001)
    gap, index = true_accuracy(confidence, over) - confidence, bin_index(confidence, 15)
    inside = np.bincount(index, gap, 15) / np.maximum(np.bincount(index, minlength=15), 1)
    plain = float(np.abs(gap).mean())
    return dict(zip(CALIBRATION, [plain, plain, float(np.sqrt((inside[index] ** 2).mean()))], strict=True))


def coverage(n: int, over: float, repeats: int, resamples: int) -> dict[str, float]:
    """How often the 95 % interval holds the true value, and whether it always holds the value seen."""
    rng, inside, truth = np.random.default_rng(n), dict.fromkeys(CALIBRATION, 0), true_errors(over)
    for k in range(repeats):
        found = measure(draw(n, over, rng), [METRICS.resolve(name) for name in CALIBRATION], 15, resamples, 0.95, k)
        for name, metric in found.items():
            assert metric.low is not None and metric.high is not None and 0 <= metric.low <= metric.value <= metric.high <= 1
            inside[name] += metric.low <= truth[name] <= metric.high
    return {name: count / repeats for name, count in inside.items()}


@pytest.mark.parametrize("over", [0.0, 0.02, 0.1])
def test_the_true_calibration_error_is_inside(over: float) -> None:
    # 95 % of 40 is 38, standard deviation 1.4; larger runs of this function stand in docs/metrics.md
    for name, share in coverage(200, over, 40, 100).items():
        assert share >= 0.83, (name, share)


def test_percentiles_would_miss_the_true_calibration_error() -> None:
    """What the inverted test is for: the plain interval of a calibrated model never holds 0."""
    rng, metric = np.random.default_rng(0), METRICS.resolve("ece_top1_w15")
    for _ in range(10):
        view = draw(200, 0.0, rng)
        weights = rng.multinomial(200, np.full(200, 1 / 200), size=200).T.astype(float)
        gaps, seen = metric.parts(view, 15)(weights), metric.parts(view, 15)(np.ones((200, 1)))[:, 0]
        assert percentile_interval(np.abs(gaps).sum(axis=0), 0.95)[0] > 0.01
        low, high = gaps_interval(seen, gaps, "sum", 0.95)
        assert low <= 0.01 and high >= np.abs(seen).sum()


def test_the_inverted_test_by_hand() -> None:
    # One gap of 0.5 with noise -0.1, 0, 0.1: |0.5 t + noise| reaches 0.5 at its highest for 0.5 t = 0.4, at its lowest for 0.6.
    noise = np.array([[-0.1, 0.0, 0.1]]) + 0.5
    assert gaps_interval(np.array([0.5]), noise, "sum", 0.95) == pytest.approx((0.4, 0.6), abs=1e-4)
    assert gaps_interval(np.array([0.5]), noise, "max", 0.95) == pytest.approx((0.4, 0.6), abs=1e-4)
    # The sum of squares is that of the same t
    assert gaps_interval(np.array([0.5]), noise, "squares", 0.95) == pytest.approx((0.16, 0.36), abs=1e-4)
    # A gap within its noise: 0 cannot be excluded
    assert gaps_interval(np.array([0.01]), np.array([[-0.1, 0.02, 0.11]]), "sum", 0.95)[0] == 0.0


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n", [2, 5, 40, 400])
def test_every_interval_holds_its_value(name: str, n: int) -> None:
    metric, rng = METRICS.resolve(name), np.random.default_rng(n)
    for seed in range(3):
        labels = rng.integers(4, size=n)
        logits = 2 * rng.normal(size=(3, n, 4))
        logits[:, np.arange(n), labels] += 2
        found = measure(view_of(logits, labels), [metric], 15, 60, 0.95, seed)[name]
        if found.low is not None and found.high is not None:
            assert found.low <= found.value <= found.high, (found.low, found.value, found.high)
            assert metric.limits[0] <= found.low and found.high <= metric.limits[1]


def perfect(n: int) -> dict[str, MetricValue]:
    labels = np.arange(n) % 3
    return measure(view_of(900.0 * np.eye(3)[labels][None], labels), [METRICS.resolve(name) for name in HARD], 15, 50, 0.95, 0)


@pytest.mark.parametrize("n", [3, 300])
def test_a_perfect_score_is_not_certain(n: int) -> None:
    """n of n right, always sure: up to 3.84 / (n + 3.84) of the samples may be otherwise."""
    found, unseen = perfect(n), 1.959964**2 / (n + 1.959964**2)
    assert unseen_share(n, 0.95) == pytest.approx(unseen)
    for name in ("accuracy", "macro_f1"):
        assert found[name].value == 1.0 and (found[name].low, found[name].high) == pytest.approx((1 - unseen, 1.0)), name
    for name in ("ece_top1_w15", "ece_top1_m15", "ece_class_w15", "ece_debiased_w15", "mce_top1_w15", "aurc", "eaurc"):
        assert found[name].value == 0.0 and (found[name].low, found[name].high) == pytest.approx((0.0, unseen)), name
    assert (found["brier"].low, found["brier"].high) == pytest.approx((0.0, 2 * unseen))
    # nothing bounds a log-likelihood that never varied, and one member's disagreement is 0 by definition
    for name in ("nll", "disagreement", "mutual_information_mean"):
        assert (found[name].value, found[name].low, found[name].high) == (0.0, None, None), name


def test_all_right_but_not_sure() -> None:
    """Resamples hold no error, so that they alone would tell the calibration error to the third digit."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.9, 0.99, size=100)
    view = view_of(np.log(np.stack([confidence, 1 - confidence], axis=1))[None], np.zeros(100, dtype=np.int64))
    ece = measure(view, [METRICS.resolve("ece_top1_w15")], 15, 100, 0.95, 0)["ece_top1_w15"]
    assert ece.low is not None and ece.high is not None
    assert ece.value - ece.low >= 0.03 and ece.high - ece.value >= 0.03


def test_accuracy_has_the_interval_of_a_proportion() -> None:
    labels = np.array([0] * 10)
    logits = np.where(np.arange(10)[:, None] < 8, [[2.0, 0.0]], [[0.0, 2.0]])[None]
    accuracy = measure(view_of(logits, labels), [METRICS.resolve("accuracy")], 15, 20, 0.95, 0)["accuracy"]
    assert (accuracy.low, accuracy.high) == wilson_interval(8, 10)


def test_one_sample_and_no_resamples() -> None:
    view = view_of(np.array([[[2.0, 0.0]]]), np.array([0]))
    found = measure(view, [METRICS.resolve(name) for name in HARD], 15, 50, 0.95, 0)
    assert (found["accuracy"].low, found["accuracy"].high) == wilson_interval(1, 1)
    ece = found["ece_top1_w15"]
    assert ece.low == 0.0 and ece.high is not None and ece.high > 0.79, "one sample says next to nothing"
    assert all(v.low is None for v in measure(view, [METRICS.resolve("accuracy")], 15, 0, 0.95, 0).values())


def test_many_samples_take_fewer_resamples_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sve_cli.metrics.intervals.WORK", 200 * 120)
    view, metrics = draw(200, 0.0, np.random.default_rng(0)), [METRICS.resolve(name) for name in ("nll", "brier_reliability_w15")]
    fewer, exactly = measure(view, metrics, 15, 500, 0.95, 0), measure(view, metrics, 15, 120, 0.95, 0)
    assert "from 120 resamples" in fewer["nll"].definition and "because" not in exactly["nll"].definition
    limits = [(found["nll"].low, found["nll"].high) for found in (fewer, exactly)]
    assert limits[0] == pytest.approx(limits[1], rel=1e-13)  # sums of another shape: some processors round them otherwise


def test_weights_that_are_kept_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    view = aggregate(Predictions(np.zeros((1, 60, 2), np.float32), np.zeros(60, int), [str(i) for i in range(60)], ["a", "b"], "d"))
    drawn = list(intervals.weight_blocks(view, 70, 3))
    monkeypatch.setattr(intervals, "REMEMBERED", 60 * 70)
    for _ in range(2):
        kept = list(intervals.weight_blocks(view, 70, 3))
        assert all((one == other).all() and one.dtype == other.dtype for one, other in zip(kept, drawn, strict=True))
    assert not (next(iter(intervals.weight_blocks(view, 70, 4))) == drawn[0]).all()


def test_interval_search_by_quantiles() -> None:
    """The same limits as quantiles of the resampled norms give, empty bins included."""
    rng = np.random.default_rng(0)
    seen = np.array([0.02, 0.0, -0.01, 0.03])
    resampled = seen[:, None] + 0.003 * rng.normal(size=(4, 399)) * (seen != 0)[:, None]
    noise = resampled - resampled.mean(axis=1, keepdims=True)
    low, high = gaps_interval(seen, resampled, "sum", 0.9)
    value = np.abs(seen).sum()
    for limit, share in ((low, 0.95), (high, 0.05)):
        around = [np.quantile(np.abs(f * limit / value * seen[:, None] + noise).sum(axis=0), share) for f in (0.99, 1.01)]
        assert around[0] < value < around[1]
