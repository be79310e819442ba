"""Samples from the most to the least confident, with what adds up along that order under the weights of a resample.

Shapes: N samples, U units, R resamples, G groups of equal confidence, E groups that hold an error, K levels.
"""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.sums import Sums, remembering, sum_by
from sve_cli.statistics import tie_groups

POOLS = 1000  # groups of neighbours where samples are resampled in units: their order within one is left out


class Ranking:
    """The order of a view's samples by confidence, the largest first; equal confidences together.

    Attributes:
        groups: how many there are.
        wrong_E: those that hold an error, in order.
        mass, gaps: weights (U, R) -> weight, and sum of weight * (correct - confidence), of a group and all above it (G, R).
        errors: weights (U, R) -> wrong answers of each group with an error, alone (E, R).
    """

    def __init__(self, view: Aggregated) -> None:
        rising_N, self.groups = tie_groups(view.confidence_N)
        if view.unit_N is not None and self.groups > POOLS:
            upto_G = np.cumsum(np.bincount(rising_N, minlength=self.groups))
            present, pool_G = np.unique((upto_G - 1) * POOLS // view.n, return_inverse=True)
            rising_N, self.groups = pool_G[rising_N], len(present)
        group_N, error_N = self.groups - 1 - rising_N, 1.0 - view.correct_N
        self.wrong_E, wrong_N = np.unique(group_N[error_N > 0], return_inverse=True)
        place_N = np.zeros(view.n, dtype=np.int64)
        place_N[error_N > 0] = wrong_N
        self.mass = remembering(_added_up(sum_by(view, group_N, self.groups)))
        self.gaps = remembering(_added_up(sum_by(view, group_N, self.groups, view.correct_N - view.confidence_N)))
        self.errors = remembering(sum_by(view, place_N, len(self.wrong_E), error_N))


def ranking_of(view: Aggregated) -> Ranking:
    """The view's ranking, made once."""
    found: Ranking = view.once("ranking", lambda: Ranking(view))
    return found


def first_reaching(mass_GR: np.ndarray, level_KR: np.ndarray) -> np.ndarray:
    """The first group with at least this much mass up to it, for every level and resample (K, R); no level exceeds the last."""
    low, high = np.zeros(level_KR.shape, dtype=np.int64), np.full(level_KR.shape, len(mass_GR) - 1)
    columns = np.arange(mass_GR.shape[1])
    while (low < high).any():
        middle = (low + high) // 2
        below = mass_GR[middle, columns] < level_KR
        low, high = np.where(below, np.minimum(middle + 1, high), low), np.where(below, high, middle)
    return low


def up_to(sums_GR: np.ndarray, at_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative sums before and after the group `at` (K, R)."""
    columns = np.arange(sums_GR.shape[1])
    return np.where(at_KR > 0, sums_GR[np.maximum(at_KR - 1, 0), columns], 0.0), sums_GR[at_KR, columns]


def _added_up(sums: Sums) -> Sums:
    def cumulative(weights_UR: np.ndarray) -> np.ndarray:
        sums_GR = sums(weights_UR)
        return np.cumsum(sums_GR, axis=0, out=sums_GR)

    return cumulative
