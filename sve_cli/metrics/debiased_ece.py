"""Calibration error without the bias of small bins (Kumar et al. 2019, "Verified Uncertainty Calibration", arXiv 1909.10155)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.sums import mass_of
from sve_cli.metrics.top_bins import top_bins


def _debiased_ece(view: Aggregated, bins: int) -> Weighted:
    table, mass = top_bins(view, bins), mass_of(view)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        count_BR = table.counts(weights_UR)
        # The mean gap squared is too large by variance / count; what is left is the mean of g_i g_j over pairs i != j.
        # Kumar et al. subtract the variance of the label alone, as their confidences are constant within a bin; these are not.
        pairs_BR = np.square(table.gaps(weights_UR)) - table.squares(weights_UR)
        share_BR = np.divide(pairs_BR, count_BR - 1.0, out=np.zeros_like(pairs_BR), where=count_BR > 1.0)
        return np.asarray(np.sqrt(np.maximum(share_BR.sum(axis=0) / mass(weights_UR), 0.0)))

    return weighted


debiased_ece_top1 = Metric(
    "ece_debiased_w{bins}",
    "lower",
    "Debiased root-mean-square top-label calibration error (Kumar et al. 2019): root of the weighted mean over {bins} equal-width "
    "bins of the squared gap between accuracy and mean confidence minus the gap's variance / n; 0 where that is negative, and "
    "a bin of one sample adds nothing.",
    _debiased_ece,
    limits=(0.0, 1.0),
    interval="centred_squares",
)
