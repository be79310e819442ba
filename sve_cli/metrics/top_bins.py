"""Counts and gaps of the bins of confidence, which several calibration errors share.

Shapes: N samples, U units, B bins, R resamples.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.binning import bin_index
from sve_cli.metrics.sums import Sums, remembering, sum_by


class TopBins:
    """Functions of the weights (U, R), each (B, R): sums of correct - confidence and of its square, and how many samples."""

    def __init__(self, view: Aggregated, bins: int) -> None:
        self.view, self.bins = view, bins
        self.index_N, self.gap_N = bin_index(view.confidence_N, bins), view.correct_N - view.confidence_N

    @cached_property
    def gaps(self) -> Sums:
        return remembering(sum_by(self.view, self.index_N, self.bins, self.gap_N))

    @cached_property
    def squares(self) -> Sums:
        return sum_by(self.view, self.index_N, self.bins, np.square(self.gap_N))

    @cached_property
    def counts(self) -> Sums:
        return remembering(sum_by(self.view, self.index_N, self.bins))


def top_bins(view: Aggregated, bins: int) -> TopBins:
    """The view's bins of equal width, made once."""
    found: TopBins = view.once(("top bins", bins), lambda: TopBins(view, bins))
    return found
