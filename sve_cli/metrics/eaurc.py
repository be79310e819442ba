"""Excess area under the risk-coverage curve (Geifman et al. 2019, arXiv 1805.08206)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.aurc import aurc_of
from sve_cli.metrics.base import Metric, Weighted


def _eaurc(view: Aggregated, bins: int) -> Weighted:
    area, error_N = aurc_of(view, bins), 1.0 - view.correct_N

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        total_R = weights_NR.sum(axis=0)
        errors_R = error_N @ weights_NR
        right_R = total_R - errors_R
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, total_R.max() + 1.0))])
        # All e errors after all r right ones: sum_{j=1..e} j / (r + j) = e - r (H(n) - H(r)).
        steps_R = harmonic[np.rint(total_R).astype(np.int64)] - harmonic[np.rint(right_R).astype(np.int64)]
        return np.maximum(area(weights_NR) - (errors_R - right_R * steps_R) / total_R, 0.0)

    return weighted


eaurc = Metric(
    "eaurc",
    "lower",
    "Excess AURC: aurc minus that of the best order with the same errors, all of them last (exact sum, not the approximation "
    "r + (1 - r) ln(1 - r)); 0 when every right answer is more confident than every wrong one.",
    _eaurc,
    limits=(0.0, 1.0),
    max_resamples=400,
)
