"""Calibration error with bins of equal mass."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.ranking import first_reaching, ranking_of, up_to


def _gaps(view: Aggregated, bins: int) -> Weighted:
    ranking = ranking_of(view)
    shares_K = np.arange(1, bins)[:, None] / bins

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        # Cumulative gap as a piecewise linear function of cumulative mass; a bin's gap is its rise between two cuts.
        mass_GR, gaps_GR = ranking.mass(weights_UR), ranking.gaps(weights_UR)
        cuts_KR = shares_K * mass_GR[-1]
        at_KR = first_reaching(mass_GR, cuts_KR)
        (mass_KR, mass_after), (gap_KR, gap_after) = up_to(mass_GR, at_KR), up_to(gaps_GR, at_KR)
        gap_KR = gap_KR + (gap_after - gap_KR) * (cuts_KR - mass_KR) / (mass_after - mass_KR)
        ends = [np.zeros((1, weights_UR.shape[1])), gap_KR, gaps_GR[-1:]]
        return np.asarray(np.diff(np.concatenate(ends), axis=0)[::-1] / mass_GR[-1])  # the least confident bin first

    return weighted


adaptive_ece_top1 = Metric(
    "ece_top1_m{bins}",
    "lower",
    "Top-label calibration error with {bins} bins of exactly equal mass along increasing confidence, mean of "
    "|accuracy - mean confidence|; equal confidences are pooled, and what lies on a cut is shared between its two bins.",
    from_parts(_gaps),
    limits=(0.0, 1.0),
    parts=_gaps,
    ranked=True,
)
