"""Brier score."""

from __future__ import annotations

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, weighted_mean


def _brier(view: Aggregated, bins: int) -> Weighted:
    return weighted_mean(view, view.squared_error_N)  # options that do not exist have p = 0 and add nothing


brier = Metric(
    "brier",
    "lower",
    "Sum over classes of the squared error of the ensemble's probability, mean over samples (0 to 2).",
    _brier,
    limits=(0.0, 2.0),
)
