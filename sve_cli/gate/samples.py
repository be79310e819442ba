"""What a committable baseline keeps of each sample, and the metrics that can be computed from it.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric
from sve_cli.metrics.distribution import Distribution
from sve_cli.registry import METRICS

AGREE = 1e-6  # a metric recomputed from samples equals the report's within this
CHANGED = 1e-5  # confidences closer than this are the same output
TOP_CLASS = ("ece_top1", "mce_top1", "ece_debiased", "aurc", "eaurc", "risk_at")  # metrics of confidence and correctness
PARTS = ("confidence_N", "nll_N", "squares_N")


@dataclass(frozen=True)
class Samples:
    """One labelled sample a row, float64.

    Attributes:
        ids_N: sample ids; labels_N: index of the true class; classes: their names.
        confidence_N: probability of the predicted class; correct_N: 1.0 where it is the label.
        nll_N: -ln of the true class's probability (nats); squares_N: sum over classes of the squared probabilities.
    """

    ids_N: list[str]
    labels_N: np.ndarray
    confidence_N: np.ndarray
    correct_N: np.ndarray
    nll_N: np.ndarray
    squares_N: np.ndarray
    classes: list[str]

    @property
    def n(self) -> int:
        return len(self.ids_N)

    def take(self, rows: np.ndarray) -> Samples:
        """The samples `rows` (indices), in that order."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("ids_N", "classes")}
        return Samples(ids_N=[self.ids_N[i] for i in rows], classes=self.classes, **arrays)

    def view(self) -> Aggregated:
        """The samples as a distribution over two stand-in classes: the true one (0), and one that makes the sum of squares right.

        Metrics of correctness, confidence, the true class's probability and the sum of squares are the same on it; the others
        are not, see `recomputable`.
        """
        true_N = np.exp(-self.nll_N)
        rest_N = np.sqrt(np.maximum(self.squares_N - np.square(true_N), 0.0))
        log_probs_NC = np.stack([-self.nll_N, np.log(np.maximum(rest_N, 1e-300))], axis=1)
        wrong_NC = np.stack([true_N - 1.0, rest_N], axis=1)
        nothing_N = np.full(self.n, np.nan)
        return Aggregated(
            labels_N=np.zeros(self.n, dtype=np.int64),
            distribution=Distribution(None, log_probs_NC),
            log_label_N=-self.nll_N,
            squared_error_N=np.square(wrong_NC).sum(axis=1),
            predicted_N=(self.correct_N < 0.5).astype(np.int64),
            confidence_N=self.confidence_N,
            entropy_N=nothing_N,
            expected_entropy_N=nothing_N,
            mutual_information_N=nothing_N,
            disagreement_N=nothing_N,
            variation_ratio_N=nothing_N,
        )


def samples_of(view: Aggregated, ids_N: list[str], classes: list[str]) -> Samples:
    """The labelled samples of an aggregated view.

    Raises:
        SveError: no sample has a label, or an id occurs twice.
    """
    rows = np.flatnonzero(view.labels_N >= 0)
    if not len(rows):
        raise SveError("No sample has a label, so there is nothing to gate.", "Name predictions on a labelled set.")
    if len(set(ids_N)) < len(ids_N):
        raise SveError("Some sample ids occur more than once, so samples cannot be paired.", "Give each sample an id of its own.")
    labels_N = view.labels_N[rows]
    return Samples(
        ids_N=[ids_N[i] for i in rows],
        labels_N=labels_N,
        confidence_N=view.confidence_N[rows],
        correct_N=view.correct_N[rows],
        nll_N=-view.log_label_N[rows],
        # sum of (p - y)² = sum of p² - 2 p(label) + 1
        squares_N=view.squared_error_N[rows] + 2.0 * np.exp(view.log_label_N[rows]) - 1.0,
        classes=classes,
    )


def recomputable(samples: Samples, view: Aggregated, bins: int) -> dict[str, Metric]:
    """Metrics by report key whose value from the samples equals that of the whole predictions within 1e-6."""
    found: dict[str, Metric] = {}
    summary = samples.view()
    for name in METRICS:
        metric: Metric = METRICS.resolve(name)
        if metric.needs_labels and metric.applies(summary) and metric.applies(view):
            gap = abs(metric.compute(summary, bins) - metric.compute(view, bins))
            if gap <= AGREE:
                found[metric.key(bins)] = metric
    return found


def changed_samples(first: Samples, second: Samples, metric: str) -> int:
    """On how many of the same samples the two sides differ in what the metric reads.

    Accuracy: correctness; what reads the top class alone: its confidence too; all others also the label's probability and the sum
    of squares, which change with any class's.
    """
    differ_N = first.correct_N != second.correct_N
    read = () if metric == "accuracy" else ("confidence_N",) if metric.startswith(TOP_CLASS) else PARTS
    for name in read:
        differ_N = differ_N | (np.abs(getattr(first, name) - getattr(second, name)) > CHANGED)
    return int(differ_N.sum())


def pair(baseline: Samples, other: Samples, max_missing: float) -> tuple[Samples, Samples, list[str]]:
    """Both on the ids they share, in one order; and what was left out, in sentences.

    Raises:
        SveError: more than `max_missing` of either side is missing in the other, other classes, or another label.
    """
    shared = sorted(set(baseline.ids_N) & set(other.ids_N))
    notes = missing_notes(len(shared), {"the baseline": baseline.n, "these predictions": other.n}, max_missing)
    rows = []
    for side in (baseline, other):
        place = {sample: i for i, sample in enumerate(side.ids_N)}
        rows.append(side.take(np.array([place[sample] for sample in shared], dtype=np.int64)))
    first, second = rows
    if len(first.classes) != len(second.classes):
        raise SveError(
            f"The baseline has {len(first.classes)} classes and these predictions have {len(second.classes)}.",
            "Make a new baseline for the new classes.",
        )
    by_name = set(first.classes) == set(second.classes)
    names = [[side.classes[i] if by_name else str(i) for i in side.labels_N] for side in (first, second)]
    differ = [i for i, (one, two) in enumerate(zip(*names, strict=True)) if one != two]
    if differ:
        i = differ[0]
        raise SveError(
            f"The label of sample '{shared[i]}' is '{names[0][i]}' in the baseline and '{names[1][i]}' here "
            f"({len(differ):,} such samples).",
            "Compare predictions on the same data, or make a new baseline.",
        )
    if not by_name:
        notes.append("The class names differ from the baseline's; classes were matched by their number.")
    return first, second, notes


def missing_notes(shared: int, sizes: dict[str, int], max_missing: float) -> list[str]:
    """What one side lacks, in sentences.

    Raises:
        SveError: more than `max_missing` of a side's samples are missing in the other.
    """
    notes = []
    for name, n in sizes.items():
        left_out = n - shared
        if not n:
            raise SveError(f"None of the samples that are compared are among those of {name}.", "Make a new baseline.")
        if not shared or left_out > max_missing * n:
            raise SveError(
                f"{left_out:,} of the {n:,} samples of {name} ({100 * left_out / n:.1f} %) are not on the other side; at most "
                f"{100 * max_missing:.1f} % may be missing.",
                "Compare the same split of the same data with the same ids, make a new baseline, or raise max_missing.",
            )
        if left_out:
            notes.append(f"{left_out:,} of the {n:,} samples of {name} are not on the other side and are left out.")
    return notes
