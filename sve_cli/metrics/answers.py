"""The uncertainty of right answers beside that of wrong ones."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.uncertainty import entropy_mean, expected_entropy_mean, mutual_information_mean
from sve_cli.report import AnswerPart, MetricValue

BINS = 30


def right_and_wrong(view: Aggregated, confidence: float = 0.95, bins: int = BINS) -> list[AnswerPart]:
    """Total, aleatoric and epistemic uncertainty of the right and of the wrong answers; nothing without labels.

    The intervals are the normal ones of a mean.
    """
    labelled = view.labelled()
    if not labelled.n:
        return []
    edges = np.linspace(0.0, max(float(labelled.entropy_N.max()), 1e-9), bins + 1)
    right_N = labelled.correct_N == 1.0
    return [_part(labelled, key, keep_N, edges, confidence) for key, keep_N in (("right", right_N), ("wrong", ~right_N))]


def _part(view: Aggregated, key: str, keep_N: np.ndarray, edges: np.ndarray, confidence: float) -> AnswerPart:
    n = int(keep_N.sum())
    sources = (
        (entropy_mean, view.entropy_N),
        (expected_entropy_mean, view.expected_entropy_N),
        (mutual_information_mean, view.mutual_information_N),
    )
    metrics = {m.key(): _mean(values_N[keep_N], m.definition(), key, confidence) for m, values_N in sources if n}
    return AnswerPart(key, n, metrics, edges.tolist(), np.histogram(view.entropy_N[keep_N], edges)[0].tolist())


def _mean(values_N: np.ndarray, definition: str, key: str, confidence: float) -> MetricValue:
    mean, low, high = float(values_N.mean()), None, None
    if len(values_N) > 1:
        half = float(ndtri(0.5 + confidence / 2.0)) * float(values_N.std(ddof=1)) / len(values_N) ** 0.5
        low, high = max(mean - half, 0.0), mean + half
    return MetricValue(mean, len(values_N), "none", f"{definition} Of the {key} answers.", low, high)
