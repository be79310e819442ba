"""Precision, recall, F1, support and calibration error of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.class_bins import class_bins
from sve_cli.metrics.sums import unit_index
from sve_cli.report import ClassRow


def options_vary(view: Aggregated) -> bool:
    """Whether some option exists for some samples only: then a class is a letter, and means nothing over samples."""
    return not view.all_exist and bool((view.exists_NC != view.exists_NC[:1]).any())


def per_class(view: Aggregated, bins: int, names: Sequence[str]) -> list[ClassRow]:
    """One row a class that exists; nothing without labels, or where the options vary between samples."""
    labelled = view.labelled()
    if not labelled.n or options_vary(labelled):
        return []
    support_C = np.bincount(labelled.labels_N, minlength=labelled.n_classes)
    predicted_C = np.bincount(labelled.predicted_N, minlength=labelled.n_classes)
    hits_C = np.bincount(labelled.labels_N, labelled.correct_N, minlength=labelled.n_classes)
    error_C = _calibration_errors(labelled, bins)
    return [
        _row(names[c], int(support_C[c]), int(predicted_C[c]), float(hits_C[c]), float(error_C[c]))
        for c in map(int, np.flatnonzero(labelled.exists_NC[0]))
    ]


def _calibration_errors(view: Aggregated, bins: int) -> np.ndarray:
    """One against the rest, of each class (C,)."""
    gap_CB1 = class_bins(view, bins).gaps(np.ones((unit_index(view)[1], 1)))
    return np.asarray(np.abs(gap_CB1[..., 0]).sum(axis=1) / view.n)


def _row(name: str, support: int, predicted: int, hits: float, error: float) -> ClassRow:
    return ClassRow(
        name,
        support,
        predicted,
        hits / predicted if predicted else None,
        hits / support if support else None,
        2.0 * hits / (support + predicted) if support + predicted else None,
        error,
    )
