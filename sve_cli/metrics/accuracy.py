"""Accuracy."""

from __future__ import annotations

from sve_cli.metrics.base import Metric, weighted_mean

accuracy = Metric(
    "accuracy",
    "higher",
    "Share of samples whose most probable class is the label (0 to 1).",
    lambda view, bins: weighted_mean(view, view.correct_N),
    limits=(0.0, 1.0),
    interval="proportion",
)
