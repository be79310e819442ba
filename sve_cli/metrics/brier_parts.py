"""Brier score = reliability - resolution + uncertainty (Murphy, J. Appl. Meteorol. 1973), over classes one against the rest.

Bins hold different probabilities, so Murphy's identity leaves a rest. It is counted as resolution, as in the generalised
resolution of Stephenson, Coelho and Jolliffe (Weather and Forecasting 2008), and the three add up to `brier` exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, from_parts
from sve_cli.metrics.brier import brier
from sve_cli.metrics.class_bins import class_bins, label_counts, option_mass
from sve_cli.metrics.sums import mass_of

DEAR = 200  # resamples at most: N times C terms each


def _gaps(view: Aggregated, bins: int) -> Weighted:
    table, mass = class_bins(view, bins), mass_of(view)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        gap_CBR, count_CBR = table.gaps(weights_UR), table.counts(weights_UR)
        root_CBR = np.sqrt(np.maximum(count_CBR, 0.0) * mass(weights_UR))
        gaps_CBR = np.divide(gap_CBR, root_CBR, out=np.zeros_like(gap_CBR), where=count_CBR > 0)
        return np.asarray(gaps_CBR.reshape(-1, weights_UR.shape[1]))

    return weighted


_reliability = from_parts(_gaps, "squares")


def _uncertainty(view: Aggregated, bins: int) -> Weighted:
    seen, mass, total = label_counts(view), option_mass(view), mass_of(view)

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        mass_CR, seen_CR = mass(weights_UR), seen(weights_UR)
        share_CR = np.divide(seen_CR, mass_CR, out=np.zeros_like(seen_CR), where=mass_CR > 0)
        return np.asarray((seen_CR * (1.0 - share_CR)).sum(axis=0) / total(weights_UR))

    return weighted


def _resolution(view: Aggregated, bins: int) -> Weighted:
    parts: list[tuple[float, Callable[[np.ndarray], np.ndarray]]] = [
        (1.0, _reliability(view, bins)),
        (1.0, _uncertainty(view, bins)),
        (-1.0, brier.prepare(view, bins)),
    ]
    return lambda weights_UR: np.asarray(sum(sign * part(weights_UR) for sign, part in parts))


brier_reliability = Metric(
    "brier_reliability_w{bins}",
    "lower",
    "Reliability part of the Brier score (Murphy 1973): sum over classes of the weighted mean over {bins} equal-width bins of "
    "(mean probability - share of the class)²; brier = reliability - resolution + uncertainty.",
    _reliability,
    max_resamples=DEAR,
    limits=(0.0, 2.0),
    parts=_gaps,
    norm="squares",
)

brier_resolution = Metric(
    "brier_resolution_w{bins}",
    "higher",
    "Resolution part of the Brier score: reliability + uncertainty - brier ({bins} equal-width bins); with equal probabilities "
    "in each bin Murphy's (1973) resolution, else the generalised one of Stephenson et al. (2008).",
    _resolution,
    max_resamples=DEAR,
    limits=(-2.0, 2.0),
    interval="bias_corrected",
)

brier_uncertainty = Metric(
    "brier_uncertainty",
    "none",
    "Uncertainty part of the Brier score: sum over classes of share (1 - share) of the labels, a property of the data alone; "
    "where options do not exist, each class over the samples that have it, weighted by their share.",
    _uncertainty,
)
