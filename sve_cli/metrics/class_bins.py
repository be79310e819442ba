"""Counts and gaps of the bins of every class's probability, one class against the rest.

With many classes almost every probability lies in the first bin, so that bin is what the others leave of the whole class: the whole
is a product of dense matrices, and only what lies above the first bin (a few probabilities a sample) is sorted into bins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.binning import bin_index

Tables = tuple[np.ndarray, np.ndarray]


def class_bins(view: Aggregated, bins: int, with_counts: bool = True) -> Callable[[np.ndarray], Tables]:
    """weights (N, R) -> sums of (label is c) - p_c by class, bin and resample (C, bins, R), and counts of the same shape.

    Samples for which an option does not exist are left out of its class. Without `with_counts` the second is empty.
    """
    sample, label = np.nonzero(view.probs_NC > 1.0 / bins)
    index = bin_index(view.probs_NC[sample, label], bins)
    sample, label, index = sample[index > 0], label[index > 0], index[index > 0]
    gap = (view.labels_N[sample] == label) - view.probs_NC[sample, label]
    shape = (view.n_classes * bins, view.n)
    gaps = csr_array((gap, (label * bins + index, sample)), shape=shape)
    counts = csr_array((np.ones(len(gap)), (label * bins + index, sample)), shape=shape)
    seen = label_counts(view)
    mass = option_mass(view)

    def tables(weights_NR: np.ndarray) -> Tables:
        wide = (view.n_classes, bins, weights_NR.shape[1])
        gap_CBR = np.asarray(gaps @ weights_NR).reshape(wide)
        gap_CBR[:, 0] = seen(weights_NR) - view.probs_NC.T @ weights_NR - gap_CBR.sum(axis=1)
        if not with_counts:
            return gap_CBR, np.empty(0)
        count_CBR = np.asarray(counts @ weights_NR).reshape(wide)
        count_CBR[:, 0] = mass(weights_NR) - count_CBR.sum(axis=1)
        return gap_CBR, count_CBR

    return tables


def label_counts(view: Aggregated) -> Callable[[np.ndarray], np.ndarray]:
    """weights (N, R) -> how often each class is the label (C, R)."""
    matrix = csr_array((np.ones(view.n), (view.labels_N, np.arange(view.n))), shape=(view.n_classes, view.n))
    return lambda weights_NR: np.asarray(matrix @ weights_NR)


def option_mass(view: Aggregated) -> Callable[[np.ndarray], np.ndarray]:
    """weights (N, R) -> the weight of the samples that have each option (C, R)."""
    if view.exists_NC.all():
        return lambda weights_NR: np.tile(weights_NR.sum(axis=0), (view.n_classes, 1))
    exists_CN = csr_array(view.exists_NC.T.astype(np.float64))
    return lambda weights_NR: np.asarray(exists_CN @ weights_NR)
