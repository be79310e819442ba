"""Counts and gaps of the bins of every class's probability, one class against the rest.

With many classes almost every probability lies in the first bin, so that bin is what the others leave of the whole class: the whole
is a product of dense matrices, and only what lies above the first bin (a few probabilities a sample) is sorted into bins.
Shapes: N samples, U units, C classes, B bins, R resamples.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.binning import bin_index
from sve_cli.metrics.sums import Sums, mass_of, remembering, sum_by, times, unit_index

MOST_ENTRIES = 1_000_000  # entries of a table that are held before those of one unit and bin are added up


class ClassBins:
    """Functions of the weights (U, R); samples for which an option does not exist are left out of its class.

    Attributes:
        gaps: sums of (label is c) - p_c by class, bin and resample (C, B, R).
        counts: how many samples those are, in the same shape.
    """

    def __init__(self, view: Aggregated, bins: int) -> None:
        classes = view.n_classes
        above, above_counts, probs = _tables(view, bins)
        seen, mass = label_counts(view), option_mass(view)

        def gaps(weights_UR: np.ndarray) -> np.ndarray:
            gap_CBR = above(weights_UR).reshape(classes, bins, -1)
            gap_CBR[:, 0] = seen(weights_UR) - probs(weights_UR) - gap_CBR.sum(axis=1)
            return gap_CBR

        def counts(weights_UR: np.ndarray) -> np.ndarray:
            count_CBR = above_counts(weights_UR).reshape(classes, bins, -1)
            count_CBR[:, 0] = mass(weights_UR) - count_CBR.sum(axis=1)
            return count_CBR

        self.gaps, self.counts = remembering(gaps), remembering(counts)


def class_bins(view: Aggregated, bins: int) -> ClassBins:
    """The view's bins of every class, made once."""
    found: ClassBins = view.once(("class bins", bins), lambda: ClassBins(view, bins))
    return found


def _tables(view: Aggregated, bins: int) -> tuple[Sums, Sums, Sums]:
    """Gaps and counts above the first bin (C * B, R), and the sum of each class's probability (C, R); one pass over the samples."""
    unit_N, units = unit_index(view)
    classes, shape = view.n_classes, (view.n_classes * bins, units)
    tables, held = [csr_array(shape), csr_array(shape)], 0
    probs_UC = np.zeros((units, classes)) if view.unit_N is not None else None
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add_up() -> None:
        row, column, gap = (np.concatenate(part) for part in zip(*entries, strict=True))
        for i, values in enumerate((gap, np.ones(len(gap)))):
            tables[i] = tables[i] + csr_array((values, (row, column)), shape=shape)
        entries.clear()

    for rows, log_probs_BC in view.distribution.blocks():
        probs_BC, unit_B, label_B = np.exp(log_probs_BC), unit_N[rows], view.labels_N[rows]
        sample, label = np.nonzero(probs_BC > 1.0 / bins)
        probability = probs_BC[sample, label]
        index = bin_index(probability, bins)
        gap = (label_B[sample] == label) - probability
        entries.append(tuple(part[index > 0] for part in (label * bins + index, unit_B[sample], gap)))  # type: ignore[arg-type]
        held += len(entries[-1][0])
        if probs_UC is not None:
            probs_UC += csr_array((np.ones(len(unit_B)), (unit_B, np.arange(len(unit_B)))), shape=(units, len(unit_B))) @ probs_BC
        if held > MOST_ENTRIES:
            add_up()
            held = 0
    if entries:
        add_up()
    return times(tables[0]), times(tables[1]), _probability(view, probs_UC)


def _probability(view: Aggregated, probs_UC: np.ndarray | None) -> Sums:
    """Weights -> the sum of each class's probability (C, R)."""
    if probs_UC is not None:
        return lambda weights_UR: np.asarray(probs_UC.T @ weights_UR)

    def product(weights_NR: np.ndarray) -> np.ndarray:
        found = np.zeros((view.n_classes, weights_NR.shape[1]))
        for rows, log_probs_BC in view.distribution.blocks():
            found += np.exp(log_probs_BC).T @ weights_NR[rows]
        return found

    return product


def label_counts(view: Aggregated) -> Sums:
    """Weights -> how often each class is the label (C, R)."""
    counts: Sums = view.once("label counts", lambda: remembering(sum_by(view, view.labels_N, view.n_classes)))
    return counts


def option_mass(view: Aggregated) -> Sums:
    """Weights -> the weight of the samples that have each option (C, R)."""
    if view.all_exist:
        mass = mass_of(view)
        return lambda weights_UR: np.tile(mass(weights_UR), (view.n_classes, 1))
    unit_N, units = unit_index(view)
    sample, label = np.nonzero(view.exists_NC)
    return times(csr_array((np.ones(len(sample)), (label, unit_N[sample])), shape=(view.n_classes, units)))
