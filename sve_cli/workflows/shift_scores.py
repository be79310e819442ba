"""Scores of the cells of `sve shift`, and their change from the clean rows.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from sve_cli.comparison.paired import Settings, Statistic, differences
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.base import Metric, weighted_mean
from sve_cli.metrics.intervals import measure
from sve_cli.posthoc.temperature import Temperature
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.registry import METRICS
from sve_cli.shift import CONFIDENCE, Estimate, Scores
from sve_cli.statistics import one_blas_thread

METRIC_NAMES = ("accuracy", "nll", "ece_top1_w15", "entropy_mean", "mutual_information_mean")
MEAN_CONFIDENCE = Metric(
    CONFIDENCE,
    "none",
    "Mean probability of the predicted class; that of a calibrated ensemble is its accuracy.",
    lambda view, bins: weighted_mean(view, view.confidence_N),
    needs_labels=False,
    limits=(0.0, 1.0),
)


@dataclass(frozen=True)
class Scored:
    """What one set of predictions scores. `views`: as they are, and after the run's temperature where it has one."""

    views: list[Aggregated]
    scores: Scores


@dataclass(frozen=True)
class Judge:
    """Predictions to scores, as the run's own evaluation makes them.

    Attributes:
        how: the aggregate, with the fitted weights.
        per_option: whether entropies are divided by ln K_n, for all sets alike: a change between two units means nothing.
    """

    spec: EvaluateSpec
    how: str
    temperature: Temperature | None
    seed: int
    per_option: bool

    @property
    def metrics(self) -> list[Metric]:
        return [*(METRICS.resolve(name) for name in METRIC_NAMES), MEAN_CONFIDENCE]

    def definitions(self) -> dict[str, str]:
        """Report key -> definition."""
        return {metric.key(self.spec.bins): metric.definition(self.spec.bins) for metric in self.metrics}

    @one_blas_thread()
    def score(self, predictions: Predictions) -> Scored:
        """All metrics with their intervals; every sample has a label."""
        sides = [predictions] if self.temperature is None else [predictions, self.temperature.apply(predictions)]
        views = [aggregate(side, self.how, self.per_option) for side in sides]
        found = [self._of(view) for view in views]
        return Scored(views, Scores(*found) if len(found) > 1 else Scores(found[0], {}))

    def _of(self, view: Aggregated) -> dict[str, Estimate]:
        spec = self.spec
        found = measure(view, self.metrics, spec.bins, spec.bootstrap, spec.confidence, self.seed)
        return {key: Estimate(metric.value, metric.low, metric.high) for key, metric in found.items()}

    @one_blas_thread()
    def change(self, clean: Scored, other: Scored, paired: bool) -> Scores:
        """`other` minus `clean`, with the interval of the paired bootstrap where both hold the same samples in one order.

        Args:
            paired: they do; else there is no interval.
        """
        both = zip(clean.views, other.views, strict=True)
        intervals = [self._intervals(*views) if paired and self.spec.bootstrap > 1 else {} for views in both]
        parts = [(clean.scores.ensemble, other.scores.ensemble), (clean.scores.temperature, other.scores.temperature)]
        found = [
            {key: Estimate(there[key].value - here[key].value, *interval.get(key, (None, None))) for key in there}
            for (here, there), interval in zip(parts, intervals, strict=False)
        ]
        return Scores(*found) if len(found) > 1 else Scores(found[0], {})

    def _intervals(self, clean: Aggregated, other: Aggregated) -> dict[str, tuple[float, float]]:
        """Of the differences, by report key; none where no resample differs, as for the mutual information of one member."""
        spec = self.spec
        statistics = []
        for metric in self.metrics:
            key, (here, there) = metric.key(spec.bins), (metric.prepare(view, spec.bins) for view in (clean, other))
            statistics.append(Statistic(key, key, "", key, metric.direction, "", [here], [there], [], metric.max_resamples))
        how = Settings(self.how, spec.bins, spec.bootstrap, 0, spec.confidence, self.seed)
        return {row.key: (row.low, row.high) for row in differences(statistics, [clean.n], how) if row.low < row.high}
