"""What a metric is: a name, a direction, one sentence, and one function of sample weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.sums import Sums, mass_of, sum_of
from sve_cli.report import Direction

DEFAULT_BINS = 15

# Counts of each unit (a sample, or a group of them, see `metrics.sums`) in each resample, float64 (U, R) -> the metric on each
# resample (R,). With all counts 1 it is the metric itself, so that value and interval come from the same code.
Weighted = Sums

Prepare = Callable[[Aggregated, int], Weighted]
Norm = Literal["sum", "squares", "max"]
# How the interval comes about, see `metrics.intervals`.
Interval = Literal["percentile", "proportion", "bias_corrected", "centred_squares"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        template: report key, with `{bins}` where the number of bins belongs (`ece_top1_w{bins}`).
        direction: which way is better; "none" for a description.
        sentence: the definition in one line; may contain `{bins}`.
        prepare: (view, bins) -> the metric as a function of sample weights. Called with at least one sample.
        needs_labels: samples without a label are left out.
        needs_soft_labels: left out where the data has no label distributions.
        max_resamples: take at most this many bootstrap resamples (for the dear ones); None: all.
        limits: smallest and largest possible value.
        interval: how the interval comes about when there are no `parts`.
        parts: (view, bins) -> the signed gaps (B, R) whose norm the metric is, if it is one; its interval comes from them.
        norm: sum of |gap|, sum of gap squared, or largest |gap|.
        ranked: works on the samples in order of confidence, which is coarser where samples are resampled in groups.
    """

    template: str
    direction: Direction
    sentence: str
    prepare: Prepare
    needs_labels: bool = True
    max_resamples: int | None = None
    needs_soft_labels: bool = False
    limits: tuple[float, float] = (0.0, inf)
    interval: Interval = "percentile"
    parts: Prepare | None = None
    norm: Norm = "sum"
    ranked: bool = False

    def key(self, bins: int = DEFAULT_BINS) -> str:
        """The report key."""
        return self.template.format(bins=bins)

    def definition(self, bins: int = DEFAULT_BINS) -> str:
        """The definition, with what is special about the interval."""
        note = f" Interval from at most {self.max_resamples} resamples." if self.max_resamples else ""
        return self.sentence.format(bins=bins) + note

    def rows(self, view: Aggregated) -> Aggregated:
        """The samples this metric is about."""
        return view.labelled() if self.needs_labels else view

    def applies(self, view: Aggregated) -> bool:
        """Whether the data has what the metric needs beside labels."""
        return view.soft_labels_NC is not None or not self.needs_soft_labels

    def compute(self, view: Aggregated, bins: int = DEFAULT_BINS) -> float:
        """The value; NaN when no sample is left, or when the metric does not apply."""
        rows = self.rows(view)
        return float(self.prepare(rows, bins)(np.ones((rows.n, 1)))[0]) if rows.n and self.applies(view) else float("nan")


def norm_of(gaps_BR: np.ndarray, norm: Norm) -> np.ndarray:
    """Sum of |gap|, sum of gap squared, or largest |gap|, over the first axis."""
    if norm == "squares":
        return np.asarray(np.square(gaps_BR).sum(axis=0))
    size_BR = np.abs(gaps_BR)
    return np.asarray(size_BR.max(axis=0) if norm == "max" else size_BR.sum(axis=0))


def from_parts(parts: Prepare, norm: Norm = "sum") -> Prepare:
    """The metric that is a norm of signed gaps."""

    def prepare(view: Aggregated, bins: int) -> Weighted:
        gaps = parts(view, bins)
        return lambda weights_NR: norm_of(gaps(weights_NR), norm)

    return prepare


def weighted_mean(view: Aggregated, values_N: np.ndarray) -> Weighted:
    """A mean over samples, as a function of the weights."""
    total, mass = sum_of(view, values_N), mass_of(view)
    return lambda weights_UR: np.asarray(total(weights_UR) / mass(weights_UR))
