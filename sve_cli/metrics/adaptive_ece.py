"""Calibration error with bins of equal mass."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.statistics import grouped_sums, tie_groups


def _gaps(view: Aggregated, bins: int) -> Weighted:
    group_N, n_groups = tie_groups(view.confidence_N)
    gap_N = view.correct_N - view.confidence_N

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        # Cumulative gap as a piecewise linear function of cumulative mass; a bin's gap is its rise between two cuts.
        mass_GR = np.cumsum(grouped_sums(weights_NR, group_N, n_groups), axis=0)
        rise_GR = np.cumsum(grouped_sums(weights_NR, group_N, n_groups, gap_N), axis=0)
        start = np.zeros((1, weights_NR.shape[1]))
        mass_RG, rise_RG = np.concatenate([start, mass_GR]).T.copy(), np.concatenate([start, rise_GR]).T.copy()
        shares = np.linspace(0.0, 1.0, bins + 1)
        pairs = zip(mass_RG, rise_RG, strict=True)
        return np.stack([np.diff(np.interp(shares * m[-1], m, r)) / m[-1] for m, r in pairs], axis=1)

    return weighted


adaptive_ece_top1 = Metric(
    "ece_top1_m{bins}",
    "lower",
    "Top-label calibration error with {bins} bins of exactly equal mass along increasing confidence, mean of "
    "|accuracy - mean confidence|; equal confidences are pooled, and what lies on a cut is shared between its two bins.",
    from_parts(_gaps),
    limits=(0.0, 1.0),
    parts=_gaps,
)
