"""Negative log-likelihood."""

from __future__ import annotations

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, weighted_mean


def _nll(view: Aggregated, bins: int) -> Weighted:
    return weighted_mean(view, -view.log_label_N)


nll = Metric(
    "nll",
    "lower",
    "Mean over samples of -ln p(label) of the ensemble's distribution, by logsumexp in float64 (nats).",
    _nll,
)
