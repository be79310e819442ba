"""Expected calibration error, top label, equal-width bins (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.binning import bin_index
from sve_cli.statistics import grouped_sums


def _gaps(view: Aggregated, bins: int) -> Weighted:
    index_N, gap_N = bin_index(view.confidence_N, bins), view.correct_N - view.confidence_N

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        # The weight of a bin cancels: (n_b / n) |acc_b - conf_b| = |sum of (correct - confidence) in b| / n.
        return grouped_sums(weights_NR, index_N, bins, gap_N) / weights_NR.sum(axis=0)

    return weighted


ece_top1 = Metric(
    "ece_top1_w{bins}",
    "lower",
    "Top-label expected calibration error: {bins} equal-width bins of confidence, bin = ceil({bins} conf) - 1 clipped, "
    "weighted mean of |accuracy - mean confidence|.",
    from_parts(_gaps),
    limits=(0.0, 1.0),
    parts=_gaps,
)
