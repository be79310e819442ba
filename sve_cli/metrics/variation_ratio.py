"""Variation ratio of the members' votes (Freeman 1965; Gal 2016)."""

from __future__ import annotations

from sve_cli.metrics.base import Metric, weighted_mean

variation_ratio_mean = Metric(
    "variation_ratio_mean",
    "none",
    "Share of the members that do not vote for the most frequent class among their votes, mean over samples (0 for one member).",
    lambda view, bins: weighted_mean(view, view.variation_ratio_N),
    needs_labels=False,
)
