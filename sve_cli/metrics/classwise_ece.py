"""Class-wise calibration error (Kull et al. 2019, arXiv 1910.12656)."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.binning import bin_index


def _classwise_ece(view: Aggregated, bins: int) -> Weighted:
    sample, label = np.nonzero(view.exists_NC)
    probability = view.probs_NC[sample, label]
    gap = (view.labels_N[sample] == label) - probability
    row = label * bins + bin_index(probability, bins)
    gaps = csr_array((gap, (row, sample)), shape=(view.n_classes * bins, view.n))
    exists_CN = csr_array(view.exists_NC.T.astype(np.float64))

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        resamples = weights_NR.shape[1]
        gap_CR = np.abs(gaps @ weights_NR).reshape(view.n_classes, bins, resamples).sum(axis=1)
        mass_CR = exists_CN @ weights_NR
        ece_CR = np.divide(gap_CR, mass_CR, out=np.zeros_like(gap_CR), where=mass_CR > 0)
        return np.asarray(ece_CR.sum(axis=0) / (mass_CR > 0).sum(axis=0))

    return weighted


classwise_ece = Metric(
    "ece_class_w{bins}",
    "lower",
    "Mean over classes of the one-vs-rest calibration error of the class probability ({bins} equal-width bins); samples for "
    "which an option does not exist are left out of its class.",
    _classwise_ece,
    max_resamples=200,
)
