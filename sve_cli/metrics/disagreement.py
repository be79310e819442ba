"""Disagreement of the members."""

from __future__ import annotations

from sve_cli.metrics.base import Metric, weighted_mean

disagreement = Metric(
    "disagreement",
    "none",
    "Share of member pairs with different most probable classes, mean over samples (0 for one member).",
    lambda view, bins: weighted_mean(view, view.disagreement_N),
    needs_labels=False,
)
