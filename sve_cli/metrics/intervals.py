"""Values of metrics with intervals that hold them, from shared bootstrap resamples.

Shapes: N samples, R resamples, B signed gaps. Four cases, because one recipe does not fit all:

- A proportion (accuracy) has Wilson's interval.
- A norm of signed gaps (calibration errors) is biased upward, in a resample doubly so: the percentile interval of a calibrated
  model never holds 0, and need not hold the value. Here the gaps seen are scaled by t, the noise is that of the resamples, and
  the interval holds every t * value that would give the value seen with a probability of at least (1 - confidence) / 2 on each
  side: a test inverted, with the resamples for its distribution.
- Other biased numbers: percentiles moved, either against the bias or onto the value.
- All else: percentiles.

What did not vary in the data could vary elsewhere: see `unseen_share`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Norm, Weighted, norm_of
from sve_cli.report import MetricValue
from sve_cli.statistics import bootstrap_counts, percentile_interval, seeded, wilson_interval

STEPS = 14  # halvings of the search: 1e-4 of the value
FLAT = 1e-12  # resamples that differ by less do not differ
MOST_SCALE = 1e3
WORK, FEWEST = 50_000_000, 100  # samples times resamples at most, down to this many resamples
REMEMBERED = 1_000_000  # samples times resamples from which the weights are kept for the next row
MANY, UNITS = 50_000, 2_000  # more samples are resampled in so many random groups of equal size


def measure(
    view: Aggregated,
    metrics: Sequence[Metric],
    bins: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    many: int | None = None,
) -> dict[str, MetricValue]:
    """Values and intervals of metrics over the same samples, by report key; nothing when there are none.

    All share the resamples of `seed`. No interval with `bootstrap` 0, or where none can be said.

    Args:
        many: more samples than this are resampled in random groups; None: the module's default.
    """
    if not view.n or not metrics:
        return {}
    units = resampling_units(view, seed, many)
    grouped = units is not view
    functions: list[Weighted] = [(metric.parts or metric.prepare)(units, bins) for metric in metrics]
    resamples = bootstrap if grouped else min(bootstrap, max(FEWEST, WORK // view.n))
    limits = [0 if metric.interval == "proportion" else metric.max_resamples or resamples for metric in metrics]
    drawn = _resampled(functions, limits, units, resamples, seed)
    known = view.labels_N >= 0
    one_outcome = bool(known.all()) and len(np.unique(view.correct_N)) == 1
    once = np.ones((units.n_units or units.n, 1))
    found = {}
    for metric, function, values in zip(metrics, functions, drawn, strict=True):
        seen = function(once)[..., 0]
        if grouped and metric.ranked:  # by the order of single samples; the resamples know it in pools
            exact = (metric.parts or metric.prepare)(view, bins)(np.ones((view.n, 1)))[..., 0]
            values, seen = [resampled + (exact - seen)[..., None] for resampled in values], exact
        value = float(norm_of(seen, metric.norm)) if metric.parts else float(seen)
        low, high = None, None
        if bootstrap:
            resampled = np.concatenate(values, axis=-1) if values else seen
            low, high = interval_of(metric, value, seen, resampled, view.n, confidence, metric.needs_labels and one_outcome)
        fewer = min(resamples, metric.max_resamples or resamples) < min(bootstrap, metric.max_resamples or bootstrap)
        note = f" Interval from {resamples} resamples, because there are many samples." if fewer else ""
        if grouped and metric.interval != "proportion":
            note = f" Samples are resampled in {UNITS:,} random groups, because there are many."
        found[metric.key(bins)] = MetricValue(value, view.n, metric.direction, metric.definition(bins) + note, low, high)
    return found


def how_resampled(n: int, bootstrap: int) -> str:
    """How the intervals over n samples come about, in words."""
    if not bootstrap:
        return "none (bootstrap: 0)"
    if n > MANY:
        return f"{bootstrap:,} resamples of {UNITS:,} random groups of {n // UNITS:,} or {n // UNITS + 1:,} samples"
    return f"{min(bootstrap, max(FEWEST, WORK // max(n, 1))):,} resamples of single samples"


def resampling_units(view: Aggregated, seed: int, many: int | None = None) -> Aggregated:
    """The view whose units are resampled: random groups of more than `many` samples, else the samples themselves."""
    if view.n <= (MANY if many is None else many):
        return view
    units: Aggregated = view.once(("units", seed), lambda: view.in_units(UNITS, seeded(seed, "groups")))
    return units


def weight_blocks(units: Aggregated, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """How often each unit occurs in each resample, as blocks (U, R); the same for all views of as many units."""
    if units.n_units:
        return _group_weights(resamples, seed)
    if units.n * resamples < REMEMBERED:
        return bootstrap_counts(units.n, resamples, seeded(seed, "bootstrap"))
    return (counts_NR.astype(np.float64) for counts_NR in _sample_weights(units.n, resamples, seed))


@lru_cache(maxsize=2)
def _group_weights(resamples: int, seed: int) -> list[np.ndarray]:
    """The weights of the random groups: the same for all rows and slices."""
    return list(bootstrap_counts(UNITS, resamples, seeded(seed, "bootstrap")))


@lru_cache(maxsize=1)
def _sample_weights(n: int, resamples: int, seed: int) -> list[np.ndarray]:
    """The weights of single samples, which all rows of a report share, in an eighth of the memory: no count comes near 255."""
    return [counts_NR.astype(np.uint8) for counts_NR in bootstrap_counts(n, resamples, seeded(seed, "bootstrap"))]


def _resampled(
    functions: Sequence[Weighted], limits: Sequence[int], units: Aggregated, resamples: int, seed: int
) -> list[list[np.ndarray]]:
    """Each function on blocks of resamples, up to its limit."""
    drawn: list[list[np.ndarray]] = [[] for _ in functions]
    done = 0
    for weights_UR in weight_blocks(units, resamples, seed):
        width = weights_UR.shape[1]
        # One array for all metrics that take as many columns: they share what they sum.
        wanted = {min(limit - done, width) for limit in limits if limit > done}
        columns = {k: weights_UR if k == width else np.ascontiguousarray(weights_UR[:, :k]) for k in sorted(wanted, reverse=True)}
        for k, weights in columns.items():
            for values, function, limit in zip(drawn, functions, limits, strict=True):
                if min(limit - done, width) == k:
                    values.append(function(weights))
        done += width
    return drawn


def interval_of(
    metric: Metric, value: float, seen: np.ndarray, resampled: np.ndarray, n: int, confidence: float, one_outcome: bool
) -> tuple[float | None, float | None]:
    """The interval of a metric; it holds the value. (None, None) where nothing varied and the metric has no largest value.

    Args:
        seen: the value, or the gaps (B,) of a metric with parts.
        resampled: the same of the resamples, (R,) or (B, R).
        one_outcome: every prediction was right, or every one wrong, so that the resamples cannot show another outcome.
    """
    if metric.interval == "proportion":
        return wilson_interval(value * n, n, confidence)
    values_R = norm_of(resampled, metric.norm) if metric.parts else resampled
    flat = float(np.ptp(values_R)) <= FLAT
    bottom, top = metric.limits
    if flat and not math.isfinite(top):
        return None, None
    low, high = (value, value) if flat else _interval(metric, value, seen, resampled, values_R, confidence)
    if (flat or one_outcome) and math.isfinite(top):
        reach = unseen_share(n, confidence) * (top - max(bottom, 0.0))
        low, high = min(low, value - reach), max(high, value + reach)
    return min(max(low, bottom), value), max(min(high, top), value)


def _interval(
    metric: Metric, value: float, seen: np.ndarray, resampled: np.ndarray, values_R: np.ndarray, confidence: float
) -> tuple[float, float]:
    if metric.parts:
        return gaps_interval(seen, resampled, metric.norm, confidence)
    if metric.interval == "centred_squares":  # for the root of an unbiased square
        squares_R = np.square(values_R)
        low, high = percentile_interval(squares_R - squares_R.mean() + value**2, confidence)
        return math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))
    low, high = percentile_interval(values_R, confidence)
    shift = 2.0 * (value - float(values_R.mean())) if metric.interval == "bias_corrected" else 0.0
    return low + shift, high + shift


def gaps_interval(seen_B: np.ndarray, resampled_BR: np.ndarray, norm: Norm, confidence: float) -> tuple[float, float]:
    """The inverted test of the module's heading: limits of the norm of the true gaps."""
    value, tail = float(norm_of(seen_B, norm)), (1.0 - confidence) / 2.0
    used_B = (seen_B != 0.0) | resampled_BR.any(axis=1)  # most bins of many classes are empty
    seen_B1, resampled_BR = seen_B[used_B, None], resampled_BR[used_B]
    noise_BR = resampled_BR - resampled_BR.mean(axis=1, keepdims=True)
    last = resampled_BR.shape[1] - 1
    lower, upper = math.floor(tail * last), math.ceil((1.0 - tail) * last)  # ranks of the quantiles, outward

    def norms(scale: float) -> np.ndarray:
        return norm_of(scale * seen_B1 + noise_BR, norm)

    def reached(scale: float) -> bool:  # the upper quantile is at least the value
        return int(np.count_nonzero(norms(scale) < value)) <= upper

    def passed(scale: float) -> bool:  # the lower quantile is above the value
        return int(np.count_nonzero(norms(scale) <= value)) <= lower

    def scaled(scale: float) -> float:
        return value * scale ** (2 if norm == "squares" else 1)

    low = 0.0 if reached(0.0) else scaled(_crossing(reached, 0.0, 1.0))
    if value <= 0.0 or passed(1.0):
        return low, value  # already the gaps seen would give more: they are noise for the most part
    highest = 2.0
    while highest < MOST_SCALE and not passed(highest):
        highest *= 2.0
    return low, scaled(_crossing(passed, highest / 2.0, highest))


def _crossing(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Where `beyond` turns true between `low` and `high`, by halving."""
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


def unseen_share(n: int, confidence: float) -> float:
    """Up to this share of samples may behave in a way that none of n did: Wilson's upper limit of 0 out of n (about 3.8 / n)."""
    return wilson_interval(0, n, confidence)[1]
