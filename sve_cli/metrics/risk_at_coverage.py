"""Selective risk: the error rate when only the most confident share of the samples is answered (El-Yaniv and Wiener 2010)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.ranking import first_reaching, ranking_of, up_to


def _risk_at(coverage: float) -> Callable[[Aggregated, int], Weighted]:
    def prepare(view: Aggregated, bins: int) -> Weighted:
        ranking = ranking_of(view)

        def weighted(weights_UR: np.ndarray) -> np.ndarray:
            mass_GR, errors_ER = ranking.mass(weights_UR), ranking.errors(weights_UR)
            kept_R = coverage * mass_GR[-1]
            at_R = first_reaching(mass_GR, kept_R[None])[0]  # the group that the cut falls into
            before_R, after_R = up_to(mass_GR, at_R)
            above_ER, inside_ER = ranking.wrong_E[:, None] < at_R, ranking.wrong_E[:, None] == at_R
            errors_R, wrong_R = (errors_ER * above_ER).sum(axis=0), (errors_ER * inside_ER).sum(axis=0)
            return np.asarray((errors_R + wrong_R * (kept_R - before_R) / (after_R - before_R)) / kept_R)

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
        ranked=True,
    )


risk_at_80, risk_at_90, risk_at_95 = _metric(80), _metric(90), _metric(95)
