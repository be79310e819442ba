"""Maximum calibration error."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.top_bins import top_bins


def _gaps(view: Aggregated, bins: int) -> Weighted:
    table = top_bins(view, bins)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        gap_BR, count_BR = table.gaps(weights_UR), table.counts(weights_UR)
        return np.divide(gap_BR, count_BR, out=np.zeros_like(gap_BR), where=count_BR > 0)

    return weighted


mce_top1 = Metric(
    "mce_top1_w{bins}",
    "lower",
    "Largest |accuracy - mean confidence| of the non-empty bins of the top-label calibration error "
    "({bins} equal-width bins); one sample alone can make it.",
    from_parts(_gaps, "max"),
    limits=(0.0, 1.0),
    parts=_gaps,
    norm="max",
)
