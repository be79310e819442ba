"""Selective risk: the error rate when only the most confident share of the samples is answered (El-Yaniv and Wiener 2010)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.statistics import grouped_sums, tie_groups


def _risk_at(coverage: float) -> Callable[[Aggregated, int], Weighted]:
    def prepare(view: Aggregated, bins: int) -> Weighted:
        group_N, n_groups = tie_groups(-view.confidence_N)
        error_N = 1.0 - view.correct_N

        def weighted(weights_NR: np.ndarray) -> np.ndarray:
            mass_GR = np.cumsum(grouped_sums(weights_NR, group_N, n_groups), axis=0)
            errors_GR = np.cumsum(grouped_sums(weights_NR, group_N, n_groups, error_N), axis=0)
            kept_R = coverage * mass_GR[-1]
            at_R = (mass_GR < kept_R).sum(axis=0)  # the group that the cut falls into
            columns = np.arange(len(kept_R))
            before_R, errors_R = np.where(at_R > 0, [mass_GR[at_R - 1, columns], errors_GR[at_R - 1, columns]], 0.0)
            inside_R, wrong_R = mass_GR[at_R, columns] - before_R, errors_GR[at_R, columns] - errors_R
            return np.asarray((errors_R + wrong_R * (kept_R - before_R) / inside_R) / kept_R)

        return weighted

    return prepare


def _metric(percent: int) -> Metric:
    return Metric(
        f"risk_at_{percent}",
        "lower",
        f"Error rate of the {percent} % most confident samples; errors among equal confidences are spread evenly, and a sample on "
        "the cut counts in part.",
        _risk_at(percent / 100.0),
        limits=(0.0, 1.0),
        max_resamples=400,
    )


risk_at_80, risk_at_90, risk_at_95 = _metric(80), _metric(90), _metric(95)
