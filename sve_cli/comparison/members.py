"""Every metric as a function of how many of an ensemble's members are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from sve_cli.comparison.paired import Settings, centred_interval, limited, resample_weights
from sve_cli.comparison.systems import CONFIDENCE, OF_SEVERAL_MEMBERS, SCORES, auroc_of, describe, describe_auroc, usable_metrics
from sve_cli.errors import SveError
from sve_cli.findings import Curve, CurvePoint
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.metrics.aggregate import ood_name, source_name
from sve_cli.metrics.base import DEFAULT_BINS, Weighted
from sve_cli.ood.base import OodScore
from sve_cli.ood.joint import join
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS, OOD_SCORES
from sve_cli.report import Direction
from sve_cli.statistics import seeded

MOST_SUBSETS = 50
BOOTSTRAP = 500
RELATIVE = 0.01  # an NLL within 1 % of the whole ensemble's is as good, whatever the interval says
Subset = tuple[int, ...]


@dataclass
class _Line:
    """One curve in the making. `least`: its smallest number of members; `values`, `drawn`: by number of members."""

    key: str
    metric: str
    group: str
    label: str
    direction: Direction
    definition: str
    strata: tuple[int, ...]
    limit: int | None = None
    least: int = 1
    values: dict[int, list[float]] = field(default_factory=dict)
    drawn: dict[int, np.ndarray] = field(default_factory=dict)


def subsets_of(n_members: int, size: int, seed: int = 0) -> list[Subset]:
    """All subsets of that size where there are at most 50, else 50 different ones drawn by seed."""
    if math.comb(n_members, size) <= MOST_SUBSETS:
        return list(combinations(range(n_members), size))
    rng = seeded(seed, f"subsets of {size} of {n_members}")
    drawn: dict[Subset, None] = {}
    while len(drawn) < MOST_SUBSETS:
        drawn[tuple(sorted(int(m) for m in rng.choice(n_members, size, replace=False)))] = None
    return list(drawn)


def n_subsets(n_members: int) -> int:
    """How many subsets `member_curves` looks at: the steps of its progress."""
    return sum(min(MOST_SUBSETS, math.comb(n_members, size)) for size in range(1, n_members + 1))


def member_curves(
    test: Predictions,
    ood: Sequence[Predictions] = (),
    aggregate: str = "probs",
    bins: int = DEFAULT_BINS,
    metrics: Sequence[str] = (),
    bootstrap: int = BOOTSTRAP,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Curve]:
    """Every metric, and the AUROC of each OOD set by entropy and mutual information, for 1 to M members.

    A point is the mean over subsets of its size (see `subsets_of`), with its range over them, the bootstrap interval of that
    mean over samples, and the paired difference to all members. What is 0 for one member by definition starts at two.

    Args:
        metrics: names of the registry; none: all that the data allows.
        progress: called after each subset.

    Raises:
        SveError: one member only, predictions that cannot be scored, or no metric that can.
    """
    settings = Settings(aggregate, bins, bootstrap, 0, confidence, seed)
    settings.check()
    if test.n_members < 2:
        raise SveError("These predictions have one member, so there is nothing to leave out.", "Name an ensemble's.")
    source = _Source(test, ood, metrics, settings)
    for size in range(1, test.n_members + 1):
        subsets = subsets_of(test.n_members, size, seed)
        for subset in subsets:
            _add(source, subset, len(subsets), settings)
            progress()
    return [_curve(line, test.n_members, confidence) for line in source.lines]


class _Source:
    """What is measured on each subset of members."""

    def __init__(self, test: Predictions, ood: Sequence[Predictions], names: Sequence[str], settings: Settings) -> None:
        self.test, self.joined, self.settings = test, [join(test, other) for other in ood], settings
        self.scores: list[OodScore] = [OOD_SCORES.resolve(name)() for name in SCORES]
        whole = aggregate_members(test, settings.aggregate)
        self.metrics = usable_metrics(names or list(METRICS), [test], [whole])
        if not self.metrics:
            raise SveError("There is no metric that these predictions allow.", "Name others, or use predictions with labels.")
        self.lines: list[_Line] = []
        for name, metric in self.metrics.items():
            least = 2 if name in OF_SEVERAL_MEMBERS else 1
            described = describe(metric, settings.bins)
            self.lines.append(_Line(*described, (metric.rows(whole).n,), metric.max_resamples, least))
        for joined in self.joined:
            strata = (test.n_samples, joined.n_samples - test.n_samples)
            for score in self.scores:
                least = 2 if score.name in OF_SEVERAL_MEMBERS else 1
                self.lines.append(_Line(*describe_auroc(ood_name(source_name(joined)), score), strata, least=least))

    def functions(self, subset: Subset) -> list[Weighted]:
        """One function of the sample weights for each line, for these members."""
        how, bins = self.settings.aggregate, self.settings.bins
        view = aggregate_members(_members(self.test, subset), how)
        found = [metric.prepare(metric.rows(view), bins) for metric in self.metrics.values()]
        for joined in self.joined:
            part = _members(joined, subset)
            found += [auroc_of(score.score(part, how), self.test.n_samples) for score in self.scores]
        return found


def _members(predictions: Predictions, subset: Subset) -> Predictions:
    return replace(predictions, logits_MNC=predictions.logits_MNC[list(subset)], features_MNF=None)


def _add(source: _Source, subset: Subset, n_subsets: int, settings: Settings) -> None:
    """Add one subset's values to the lines; all subsets and all sizes share their resamples."""
    size = len(subset)
    parts = [(line, function) for line, function in zip(source.lines, source.functions(subset), strict=True) if line.least <= size]
    for strata in dict.fromkeys(line.strata for line, _ in parts):
        inside = [(line, function) for line, function in parts if line.strata == strata]
        drawn: list[list[np.ndarray]] = [[] for _ in inside]
        done = 0
        for weights_NR in resample_weights(strata, settings.bootstrap, settings.seed):
            for values, (line, function) in zip(drawn, inside, strict=True):
                if (part_NR := limited(line.limit, done, weights_NR)).shape[1]:
                    values.append(function(part_NR))
            done += weights_NR.shape[1]
        for values, (line, function) in zip(drawn, inside, strict=True):
            line.values.setdefault(size, []).append(float(function(np.ones((sum(strata), 1)))[0]))
            line.drawn[size] = line.drawn.get(size, 0.0) + np.concatenate(values) / n_subsets


def _curve(line: _Line, n_members: int, confidence: float) -> Curve:
    points = []
    whole, whole_R = line.values[n_members][0], line.drawn[n_members]
    for size, values in line.values.items():
        mean = float(np.mean(values))
        low, high = centred_interval(line.drawn[size], mean, confidence)
        low, high = min(max(low, min(0.0, float(line.drawn[size].min()))), mean), max(high, mean)  # no error is below 0
        difference_low, difference_high = centred_interval(line.drawn[size] - whole_R, mean - whole, confidence)
        points.append(
            CurvePoint(
                size, len(values), len(values) == math.comb(n_members, size), mean, min(values), max(values), low, high,
                mean - whole, difference_low, difference_high,
            )
        )  # fmt: skip
    return Curve(line.key, line.metric, line.group, line.label, line.direction, line.definition, sum(line.strata), points)


def enough_members(curves: Sequence[Curve]) -> int | None:
    """The smallest number of members whose NLL is as good as that of all; None without an NLL.

    As good: the interval of the paired difference holds 0, or the difference is below 1 % of the NLL of all members.
    """
    found = [curve for curve in curves if curve.key == "nll"]
    return next((point.members for point in found[0].points if as_good(point, found[0].points[-1])), None) if found else None


def as_good(point: CurvePoint, whole: CurvePoint) -> bool:
    """Whether the point's value cannot be told from that of all members, or is within 1 % of it."""
    return point.difference_low <= 0.0 <= point.difference_high or within_relative(point, whole)


def within_relative(point: CurvePoint, whole: CurvePoint) -> bool:
    """Whether the point's value differs by less than 1 % from that of all members."""
    return abs(point.difference) < RELATIVE * abs(whole.value)
