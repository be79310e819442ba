"""Calibration error without the bias of small bins (Kumar et al. 2019, "Verified Uncertainty Calibration", arXiv 1909.10155)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.binning import bin_index
from sve_cli.statistics import grouped_sums


def _debiased_ece(view: Aggregated, bins: int) -> Weighted:
    index_N, gap_N = bin_index(view.confidence_N, bins), view.correct_N - view.confidence_N
    squared_N = np.square(gap_N)

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        count_BR = grouped_sums(weights_NR, index_N, bins)
        sum_BR = grouped_sums(weights_NR, index_N, bins, gap_N)
        # The mean gap squared is too large by variance / count; what is left is the mean of g_i g_j over pairs i != j.
        # Kumar et al. subtract the variance of the label alone, as their confidences are constant within a bin; these are not.
        pairs_BR = np.square(sum_BR) - grouped_sums(weights_NR, index_N, bins, squared_N)
        share_BR = np.divide(pairs_BR, count_BR - 1.0, out=np.zeros_like(pairs_BR), where=count_BR > 1.0)
        return np.asarray(np.sqrt(np.maximum(share_BR.sum(axis=0) / weights_NR.sum(axis=0), 0.0)))

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
