"""Expected calibration error, top label, equal-width bins (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.sums import mass_of
from sve_cli.metrics.top_bins import top_bins


def _gaps(view: Aggregated, bins: int) -> Weighted:
    gaps, mass = top_bins(view, bins).gaps, mass_of(view)
    # The weight of a bin cancels: (n_b / n) |acc_b - conf_b| = |sum of (correct - confidence) in b| / n.
    return lambda weights_UR: gaps(weights_UR) / mass(weights_UR)


ece_top1 = Metric(
    "ece_top1_w{bins}",
    "lower",
    "Top-label expected calibration error: {bins} equal-width bins of confidence, bin = ceil({bins} conf) - 1 clipped, "
    "weighted mean of |accuracy - mean confidence|.",
    from_parts(_gaps),
    limits=(0.0, 1.0),
    parts=_gaps,
)
