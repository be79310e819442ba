"""Paired bootstrap and permutation of the difference of two sides, for any number that is a function of sample weights.

Shapes: N samples, R resamples. A side is one system, or several seeds of one: its number is then the mean over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.metrics.base import Weighted
from sve_cli.report import Direction
from sve_cli.statistics import block_size, bootstrap_counts, percentile_interval, require_aggregate, seeded

POWER, LEVEL = 0.80, 0.05
ROUNDING = 1e-12  # differences closer than this are equal
# Permutations are limited too for the dear metrics, but less: with 200 no p-value could survive a correction for many rows.
DEAR_PERMUTATIONS = 5


@dataclass(frozen=True)
class Settings:
    """How sides are compared. `bootstrap`, `permutations`: how many; 0 permutations: no p-value."""

    aggregate: str
    bins: int
    bootstrap: int
    permutations: int
    confidence: float
    seed: int

    def check(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            SveError: an unknown aggregate, too few resamples, or a level outside 0 … 1.
        """
        require_aggregate(self.aggregate)
        if self.bootstrap < 2 or self.permutations < 0:
            raise SveError("A comparison needs at least 2 bootstrap resamples and no negative number of permutations.")
        if not 0.0 < self.confidence < 1.0:
            raise SveError(f"The confidence level lies between 0 and 1, it is not {self.confidence}.", "Use 0.95.")


@dataclass(frozen=True)
class Statistic:
    """One number of both sides.

    Attributes:
        key, metric, group, label, direction, definition: as in `Difference`.
        reference, other: the number as a function of the weights (N, R) of the N samples, one function a seed.
        stacked: the same of the rows of A and after them those of B, weights (2 N, R); one function a pair of seeds.
        limit: at most this many bootstrap resamples, for the dear ones.
    """

    key: str
    metric: str
    group: str
    label: str
    direction: Direction
    definition: str
    reference: list[Weighted]
    other: list[Weighted]
    stacked: list[Weighted]
    limit: int | None = None


def seed_pairs(references: int, others: int) -> list[tuple[int, int]]:
    """Which seeds are swapped with each other: each side repeated until both are equally long, which leaves its mean as it is."""
    return [(k % references, k % others) for k in range(math.lcm(references, others))]


def differences(statistics: Sequence[Statistic], strata: Sequence[int], settings: Settings) -> list[Difference]:
    """Differences with intervals and p-values; all statistics and all seeds share their resamples and swaps.

    Args:
        strata: sizes of the parts of the N samples that are resampled each within itself (one part, or ID and OOD).
    """
    resampled = _bootstrap(statistics, strata, settings)
    p_values = _permute(statistics, sum(strata), settings) if settings.permutations else [None] * len(statistics)
    n, ones_N1 = sum(strata), np.ones((sum(strata), 1))
    found = []
    for statistic, values_R, p_value in zip(statistics, resampled, p_values, strict=True):
        sides = [[float(function(ones_N1)[0]) for function in side] for side in (statistic.reference, statistic.other)]
        reference, other = (sum(seeds) / len(seeds) for seeds in sides)
        paired = len(sides[0]) == len(sides[1]) > 1
        by_seed = tuple(b - a for a, b in zip(*sides, strict=True)) if paired else ()
        difference, error = other - reference, float(values_R.std(ddof=1))
        low, high = centred_interval(values_R, difference, settings.confidence)
        # As the interval says it: a few resamples far away make the standard deviation large, and the interval none wider.
        reach = (high - low) / (2.0 * float(ndtri(0.5 + settings.confidence / 2.0))) or error
        found.append(
            Difference(
                statistic.key, statistic.metric, statistic.group, statistic.label, statistic.direction, statistic.definition, n,
                reference, other, difference, low, high, error, p_value, None, n_needed(n, reach, difference),
                by_seed,
            )
        )  # fmt: skip
    return holm(found)


def centred_interval(values_R: np.ndarray, value: float, confidence: float) -> tuple[float, float]:
    """The percentile interval of resampled differences, moved so that their mean is the difference seen where the two differ.

    A resample's calibration error is biased upward, and more so for the system with the flatter probabilities: without
    centring the interval of a difference would carry that bias a second time. A mean over samples has no such bias: what its
    resamples' mean is off by is chance (here: within three standard errors) and moves nothing, lest an end at exactly 0, where
    few samples differ, fall on either side of it.
    """
    bias = float(values_R.mean()) - value
    by_chance = 3.0 * float(values_R.std()) / math.sqrt(len(values_R)) + 1e-12
    return percentile_interval(values_R - bias if abs(bias) > by_chance else values_R, confidence)


def _mean(functions: Sequence[Weighted], weights_NR: np.ndarray) -> np.ndarray:
    return np.asarray(sum(function(weights_NR) for function in functions) / len(functions))


def limited(limit: int | None, done: int, weights_NR: np.ndarray) -> np.ndarray:
    """The columns of a block that a limited statistic still takes."""
    return weights_NR if limit is None else np.ascontiguousarray(weights_NR[:, : max(limit - done, 0)])


def _bootstrap(statistics: Sequence[Statistic], strata: Sequence[int], settings: Settings) -> list[np.ndarray]:
    """B - A on each resample, an array for each statistic."""
    drawn: list[list[np.ndarray]] = [[] for _ in statistics]
    done = 0
    for weights_NR in resample_weights(strata, settings.bootstrap, settings.seed):
        for values, statistic in zip(drawn, statistics, strict=True):
            if (part_NR := limited(statistic.limit, done, weights_NR)).shape[1]:
                values.append(_mean(statistic.other, part_NR) - _mean(statistic.reference, part_NR))
        done += weights_NR.shape[1]
    return [np.concatenate(values) for values in drawn]


def resample_weights(strata: Sequence[int], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of bootstrap weights (N, R), every part resampled within itself."""
    purposes = ("bootstrap", "bootstrap of OOD")
    block = block_size(sum(strata))
    parts = [bootstrap_counts(n, resamples, seeded(seed, purpose), block) for n, purpose in zip(strata, purposes, strict=False)]
    for blocks in zip(*parts, strict=True):
        yield blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _permute(statistics: Sequence[Statistic], n: int, settings: Settings) -> list[float]:
    """Two-sided p: how often |B - A| is at least as large when A's and B's outputs are swapped at random in each sample."""
    limits = [None if s.limit is None else DEAR_PERMUTATIONS * s.limit for s in statistics]
    observed = [abs(float(_swapped(s, np.zeros((n, 1)))[0])) for s in statistics]
    reached, taken = np.zeros(len(statistics)), np.zeros(len(statistics))
    rng, done = seeded(settings.seed, "permutation"), 0
    while done < settings.permutations:
        size = min(block_size(2 * n), settings.permutations - done)
        swaps_NR = np.ascontiguousarray(rng.integers(2, size=(size, n), dtype=np.int8).T, dtype=np.float64)
        for i, statistic in enumerate(statistics):
            if (part_NR := limited(limits[i], done, swaps_NR)).shape[1]:
                reached[i] += (np.abs(_swapped(statistic, part_NR)) >= observed[i] - ROUNDING).sum()
                taken[i] += part_NR.shape[1]
        done += size
    # The data as they are count as one permutation, so that p is never 0 and the test keeps its level.
    return [float(p) for p in (reached + 1.0) / (taken + 1.0)]


def _swapped(statistic: Statistic, swaps_NR: np.ndarray) -> np.ndarray:
    """B - A (R,) after the samples with 1 in `swaps_NR` have changed sides."""
    kept_NR = 1.0 - swaps_NR
    reference = _mean(statistic.stacked, np.concatenate([kept_NR, swaps_NR]))
    return _mean(statistic.stacked, np.concatenate([swaps_NR, kept_NR])) - reference


def n_needed(n: int, standard_error: float, difference: float) -> int | None:
    """About how many samples show a difference of this size with 80 % power at the two-sided 5 % level.

    n ((z_0.975 + z_0.8) se / |difference|)^2: the normal approximation, as if the difference seen were the true one and the
    standard error fell with the square root of n. None without a difference.
    """
    if abs(difference) <= ROUNDING:
        return None
    z = float(ndtri(1.0 - LEVEL / 2.0) + ndtri(POWER))
    return max(1, math.ceil(n * (z * standard_error / abs(difference)) ** 2))


def holm(rows: Sequence[Difference]) -> list[Difference]:
    """The rows with p-values corrected for all of them together (Holm, Scand. J. Statist. 1979)."""
    order = sorted((i for i, row in enumerate(rows) if row.p_value is not None), key=lambda i: rows[i].p_value or 0.0)
    corrected, highest = list(rows), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * (rows[i].p_value or 0.0)))
        corrected[i] = replace(rows[i], p_holm=highest)
    return corrected
