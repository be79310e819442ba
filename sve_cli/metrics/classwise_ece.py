"""Class-wise calibration error (Kull et al. 2019, arXiv 1910.12656)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.class_bins import class_bins, option_mass


def _gaps(view: Aggregated, bins: int) -> Weighted:
    table, mass = class_bins(view, bins), option_mass(view)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        gap_CBR, mass_CR = table.gaps(weights_UR), mass(weights_UR)
        total_CR = mass_CR * (mass_CR > 0).sum(axis=0)
        shares_CBR = np.divide(gap_CBR, total_CR[:, None], out=np.zeros_like(gap_CBR), where=total_CR[:, None] > 0)
        return np.asarray(shares_CBR.reshape(-1, weights_UR.shape[1]))

    return weighted


classwise_ece = Metric(
    "ece_class_w{bins}",
    "lower",
    "Mean over classes of the one-vs-rest calibration error of the class probability ({bins} equal-width bins); samples for "
    "which an option does not exist are left out of its class.",
    from_parts(_gaps),
    max_resamples=200,
    limits=(0.0, 1.0),
    parts=_gaps,
)
