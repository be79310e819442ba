"""Macro-averaged F1."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.statistics import grouped_sums


def _macro_f1(view: Aggregated, bins: int) -> Weighted:
    labels_N, predicted_N, correct_N, classes = view.labels_N, view.predicted_N, view.correct_N, view.n_classes

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        hits_CR = grouped_sums(weights_NR, labels_N, classes, correct_N)
        seen_CR = grouped_sums(weights_NR, labels_N, classes) + grouped_sums(weights_NR, predicted_N, classes)
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
