"""How far two calibration errors differ by chance when the two sides are calibrated alike.

A calibration error is a sum of |gaps|, and resampling adds its noise a second time: near 0, where the gaps are noise for the most
part, the bootstrap's standard error of a difference is too large, by a quarter and more, and a gate built on it alone sleeps. Under
the hypothesis that both sides have the same true gaps these are known better: from both sides together.
Shapes: N samples, B bins, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sve_cli.metrics.base import Weighted
from sve_cli.statistics import bootstrap_counts, seeded

STEPS = 12  # halvings of the search for the share of the gaps that is not noise


class Alike(NamedTuple):
    """Two sides calibrated alike.

    Attributes:
        error: standard error of the difference if they are.
        bias: what resampling adds to the difference seen.
        folded: how much of the sum seen is noise: a worsening hides behind it.
    """

    error: float
    bias: float
    folded: float


def alike(baseline: Weighted, other: Weighted, n: int, resamples: int, seed: int) -> tuple[Alike, np.ndarray]:
    """How far two sums of |gaps| on the same n samples differ by chance, were the true gaps of both the same.

    The common gaps are the mean of both sides', scaled down until the noise of the mean brings them back to the sum seen; each
    side's own noise, as it comes paired from the resamples, is added to them.

    Args:
        baseline, other: sample weights (N, R) -> signed gaps (B, R).

    Returns:
        that, and the baseline's own sum on every resample (R,), which `rule.alone` would draw again.
    """
    once_N1 = np.ones((n, 1))
    first_B1, second_B1 = baseline(once_N1), other(once_N1)
    common_B1 = (first_B1 + second_B1) / 2.0
    drawn = [(baseline(w_NR), other(w_NR)) for w_NR in bootstrap_counts(n, resamples, seeded(seed, "bootstrap"))]
    resampled_BR, other_BR = (np.concatenate(side, axis=1) for side in zip(*drawn, strict=True))
    first_BR, second_BR = _noise(resampled_BR), _noise(other_BR)
    bias = _differences(first_B1 + first_BR, second_B1 + second_BR).mean() - _differences(first_B1, second_B1)[0]
    share = _true_share(common_B1, (first_BR + second_BR) / 2.0)
    folded, common_B1 = (1.0 - share) * float(np.abs(common_B1).sum()), common_B1 * share
    error = float(_differences(common_B1 + first_BR, common_B1 + second_BR).std(ddof=1))
    return Alike(error, float(bias), folded), np.asarray(np.abs(resampled_BR).sum(axis=0))


def _differences(first_BR: np.ndarray, second_BR: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(second_BR).sum(axis=0) - np.abs(first_BR).sum(axis=0))


def _noise(gaps_BR: np.ndarray) -> np.ndarray:
    return gaps_BR - gaps_BR.mean(axis=1, keepdims=True)


def _true_share(gaps_B1: np.ndarray, noise_BR: np.ndarray) -> float:
    """The t in 0 ... 1 for which the sum of |t gap + noise| is on average the sum of |gap|; 0 where noise alone gives more."""
    seen, low, high = float(np.abs(gaps_B1).sum()), 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        below = float(np.abs(middle * gaps_B1 + noise_BR).sum(axis=0).mean()) < seen
        low, high = (middle, high) if below else (low, middle)
    return low
