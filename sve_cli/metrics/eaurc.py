"""Excess area under the risk-coverage curve (Geifman et al. 2019, arXiv 1805.08206)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.aurc import aurc_of, harmonic_numbers
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.sums import mass_of, sum_of


def _eaurc(view: Aggregated, bins: int) -> Weighted:
    area, errors, mass = aurc_of(view, bins), sum_of(view, 1.0 - view.correct_N), mass_of(view)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        total_R, errors_R = mass(weights_UR), errors(weights_UR)
        right_R = total_R - errors_R
        harmonic = harmonic_numbers(total_R.max())
        # All e errors after all r right ones: sum_{j=1..e} j / (r + j) = e - r (H(n) - H(r)).
        steps_R = harmonic[np.rint(total_R).astype(np.int64)] - harmonic[np.rint(right_R).astype(np.int64)]
        return np.maximum(area(weights_UR) - (errors_R - right_R * steps_R) / total_R, 0.0)

    return weighted


eaurc = Metric(
    "eaurc",
    "lower",
    "Excess AURC: aurc minus that of the best order with the same errors, all of them last (exact sum, not the approximation "
    "r + (1 - r) ln(1 - r)); 0 when every right answer is more confident than every wrong one.",
    _eaurc,
    limits=(0.0, 1.0),
    max_resamples=400,
    ranked=True,
)
