"""Macro-averaged F1."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.class_bins import label_counts
from sve_cli.metrics.sums import sum_by


def _macro_f1(view: Aggregated, bins: int) -> Weighted:
    classes = view.n_classes
    hits = sum_by(view, view.labels_N, classes, view.correct_N)
    labels, predicted = label_counts(view), sum_by(view, view.predicted_N, classes)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        hits_CR, seen_CR = hits(weights_UR), labels(weights_UR) + predicted(weights_UR)
        f1_CR = np.divide(2.0 * hits_CR, seen_CR, out=np.zeros_like(hits_CR), where=seen_CR > 0)
        return np.asarray(f1_CR.sum(axis=0) / (seen_CR > 0).sum(axis=0))

    return weighted


macro_f1 = Metric(
    "macro_f1",
    "higher",
    "Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that are neither a label nor predicted are left out.",
    _macro_f1,
    limits=(0.0, 1.0),
)
