"""Area under the risk-coverage curve (Geifman et al. 2019, arXiv 1805.08206)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.statistics import grouped_sums, tie_groups


def aurc_of(view: Aggregated, bins: int) -> Weighted:
    """The area as a function of whole-number weights."""
    group_N, n_groups = tie_groups(-view.confidence_N)
    error_N = 1.0 - view.correct_N

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        mass_GR = grouped_sums(weights_NR, group_N, n_groups)
        errors_GR = grouped_sums(weights_NR, group_N, n_groups, error_N)
        mass_after, errors_after = np.cumsum(mass_GR, axis=0), np.cumsum(errors_GR, axis=0)
        mass_before, errors_before = mass_after - mass_GR, errors_after - errors_GR
        total = mass_after[-1]
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, total.max() + 1.0))])
        # Within a group of g tied samples with error rate e, E errors and w samples above it, the risks add up to
        # sum_{j=1..g} (E + j e) / (w + j) = g e + (E - w e) (H(w + g) - H(w)).
        rate_GR = np.divide(errors_GR, mass_GR, out=np.zeros_like(errors_GR), where=mass_GR > 0)
        steps_GR = harmonic[np.rint(mass_after).astype(np.int64)] - harmonic[np.rint(mass_before).astype(np.int64)]
        return np.asarray((errors_GR + (errors_before - mass_before * rate_GR) * steps_GR).sum(axis=0) / total)

    return weighted


aurc = Metric(
    "aurc",
    "lower",
    "Area under the risk-coverage curve: mean over k = 1 ... n of the error rate of the k most confident samples (0 to 1, not "
    "times 1000); errors among equal confidences are spread evenly.",
    aurc_of,
    limits=(0.0, 1.0),
)
