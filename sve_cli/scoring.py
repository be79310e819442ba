"""Predictions to report rows, OOD tables and plain sentences. Works from predictions alone: no model, no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import Aggregated, aggregate, ood_name, source_name
from sve_cli.metrics.answers import right_and_wrong
from sve_cli.metrics.base import Metric
from sve_cli.metrics.bin_choices import bin_choices
from sve_cli.metrics.binning import bin_index
from sve_cli.metrics.intervals import measure, resampling_units
from sve_cli.metrics.per_class import per_class
from sve_cli.metrics.risk_curve import risk_curve
from sve_cli.metrics.slices import in_words, slices
from sve_cli.ood.base import OodScore
from sve_cli.ood.build import build_scores
from sve_cli.ood.detection import DETECTION, roc_points, weighted_auroc
from sve_cli.ood.joint import join
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.posthoc.temperature import Temperature
from sve_cli.posthoc.vector import Vector
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.registry import METRICS
from sve_cli.report import AnswerPart, BinChoice, ClassRow, MetricValue, OodSet, ReliabilityBin, RiskCurve, Row, Slice
from sve_cli.statistics import block_size, bootstrap_counts, percentile_interval, require_usable, seeded, wilson_interval

MEMBER_METRICS = ("accuracy", "nll", "brier", "ece_top1_w15", "nll_soft", "brier_soft")
HISTOGRAM_BINS = 40
SMALL_SET = 500
_AVERAGE = {"probs": "mean of probabilities", "logits": "mean of logits", "weighted": "weighted mean of probabilities"}


def score(
    test: Predictions,
    spec: EvaluateSpec,
    *,
    temperature: Temperature | None,
    vector: Vector | None = None,
    before: Predictions | None = None,
    seed: int = 0,
    view: Aggregated | None = None,
    members: Sequence[Aggregated] = (),
) -> list[Row]:
    """Score the ensemble, and beside it the scaled ones, each member (when M > 1) and the checkpoint before training.

    All rows share their bootstrap resamples (same seed), so that rows over the same samples are paired. Metrics that need
    labels are left out where no label is known, those that need label distributions where the data has none.

    Args:
        view, members: `test` and each of its members aggregated, if they are there already.

    Raises:
        SveError: logits that are not finite, or labels of options that do not exist.
    """
    everything = list(METRICS)
    title = f"Ensemble of {test.n_members} ({_average(spec.aggregate)})" if test.n_members > 1 else "Model"
    rows = [_row("ensemble", title, test, everything, spec, seed, view)]
    if temperature is not None:
        scaled_title = f"{title}, temperature T = {temperature.value:.3f}"
        rows.append(_row("temperature", scaled_title, temperature.apply(test), everything, spec, seed))
    if vector is not None:
        rows.append(_row("vector", f"{title}, vector scaling", vector.apply(test), everything, spec, seed))
    if test.n_members > 1:
        for m in range(test.n_members):
            alone = members[m] if members else None
            rows.append(_row(f"members.{m}", f"Member {m}", test.member(m), list(MEMBER_METRICS), spec, seed, alone))
    if before is not None:
        rows.append(_row("before", "Before training", before, everything, spec, seed))
    return rows


def _average(aggregate: str) -> str:
    kind, _, weights = aggregate.partition(":")
    shown = [f"{float(w):.2f}" for w in weights.split(",")[:8] if w]
    return _AVERAGE[kind] + (f", weights {', '.join(shown)}{', …' if weights.count(',') > 7 else ''}" if shown else "")


def _row(
    key: str,
    title: str,
    predictions: Predictions,
    names: list[str],
    spec: EvaluateSpec,
    seed: int,
    view: Aggregated | None = None,
) -> Row:
    view = aggregate(predictions, spec.aggregate) if view is None else view
    metrics: list[Metric] = [metric for name in names if (metric := METRICS.resolve(name)).applies(view)]
    values: dict[str, MetricValue] = {}
    if view.labelled().n == view.n:
        values = measure(view, metrics, spec.bins, spec.bootstrap, spec.confidence, seed)
    else:
        for needs_labels in (True, False):
            part = [metric for metric in metrics if metric.needs_labels == needs_labels]
            rows = view.labelled() if needs_labels else view
            values |= measure(rows, part, spec.bins, spec.bootstrap, spec.confidence, seed)
    order = [metric.key(spec.bins) for metric in metrics]
    ordered = {name: values[name] for name in order if name in values}
    return Row(key, title, ordered, reliability_bins(view, spec.bins, spec.confidence))


class Breakdown(NamedTuple):
    """What lies behind the averages of the ensemble."""

    bin_choices: list[BinChoice]
    per_class: list[ClassRow]
    slices: list[Slice]
    sentences: list[str]
    risk_curve: RiskCurve | None
    answers: list[AnswerPart]


def break_down(test: Predictions, spec: EvaluateSpec, seed: int = 0, view: Aggregated | None = None) -> Breakdown:
    """Other numbers of bins, classes, slices (of the columns and the classes), the risk-coverage curve, and the uncertainty of
    right and wrong answers; all empty without labels. `view`: `test` aggregated, if it is there already."""
    view = aggregate(test, spec.aggregate) if view is None else view
    parts = slices(view, test.columns, test.classes, spec.bins, spec.bootstrap, spec.confidence, seed)
    sentence = in_words(parts)
    return Breakdown(
        bin_choices(view),
        per_class(resampling_units(view, seed), spec.bins, test.classes),  # the view whose tables are there already
        parts,
        [sentence] if sentence else [],
        risk_curve(view, spec.confidence),
        right_and_wrong(view, spec.confidence),
    )


def reliability_bins(view: Aggregated, bins: int, confidence: float = 0.95) -> list[ReliabilityBin]:
    """The non-empty equal-width bins of confidence, with Wilson intervals of their accuracy."""
    labelled = view.labelled()
    index_N = bin_index(labelled.confidence_N, bins)
    table = []
    for b in np.unique(index_N):
        inside = index_N == b
        count, right = int(inside.sum()), float(labelled.correct_N[inside].sum())
        mean = float(labelled.confidence_N[inside].mean())
        low, high = wilson_interval(right, count, confidence)
        table.append(ReliabilityBin(float(b / bins), float((b + 1) / bins), count, mean, right / count, low, high))
    return table


def score_ood(
    test: Predictions,
    ood: list[Predictions],
    spec: EvaluateSpec,
    seed: int = 0,
    training: TrainingFeatures | None = None,
    groups: Sequence[str] = (),
) -> list[OodSet]:
    """How well each score of the recipe tells every OOD set from the test set (all its samples count as in-distribution).

    Args:
        training: for the scores in feature space, which predictions with features go with.
        groups: "near", "far" or "" for every set; none: no set has one.

    Raises:
        SveError: another number of members or classes than the test set's, an unknown score, logits that are not finite, or a
            score in feature space without features.
    """
    scores = build_scores(spec.ood_scores, training) if ood else []
    sets = zip(_ood_names(ood), ood, groups or [""] * len(ood), strict=True)
    return [replace(_ood_set(name, test, other, scores, spec, seed), group=group) for name, other, group in sets]


def _ood_names(ood: list[Predictions]) -> list[str]:
    names = [ood_name(source_name(other)) for other in ood]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SveError(f"The out-of-distribution set '{repeated[0]}' is given twice.", "Name each set and split once.")
    return names


def _ood_set(name: str, test: Predictions, other: Predictions, scores: list[OodScore], spec: EvaluateSpec, seed: int) -> OodSet:
    for part in (test, other):
        require_usable(part.logits_MNC, part.mask_NC, part.ids_N, source_name(part))
    joined, n_id, n_ood = join(test, other), test.n_samples, other.n_samples
    sides = {score.name: np.split(score.score(joined, spec.aggregate), [n_id]) for score in scores}
    intervals = _auroc_intervals(sides, n_id, n_ood, spec, seed)
    table: dict[str, dict[str, MetricValue]] = {}
    histograms: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        id_N, ood_N = sides[score.name]
        table[score.name] = {}
        for key, detection in DETECTION.items():
            low, high = intervals.get(score.name, (None, None)) if key == "auroc_ood" else (None, None)
            definition = f"{detection.definition} Score: {score.definition}"
            value = detection.compute(id_N, ood_N)
            table[score.name][key] = MetricValue(value, n_id + n_ood, detection.direction, definition, low, high)
        edges = _histogram_edges(np.concatenate([id_N, ood_N]))
        histograms[score.name] = {
            "edges": edges.tolist(),
            "id": np.histogram(id_N, edges)[0].tolist(),
            "ood": np.histogram(ood_N, edges)[0].tolist(),
            **roc_points(id_N, ood_N),
        }
    return OodSet(name, n_id, n_ood, table, histograms)


def _histogram_edges(scores_N: np.ndarray) -> np.ndarray:
    """Equal-width edges over the range; one unit wide where the scores are flat but for rounding."""
    low, high = float(scores_N.min()), float(scores_N.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, HISTOGRAM_BINS + 1)


def _auroc_intervals(
    sides: dict[str, list[np.ndarray]], n_id: int, n_ood: int, spec: EvaluateSpec, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals; both sides are resampled, each within itself, and all scores share the resamples."""
    if not spec.bootstrap:
        return {}
    weighted = {name: weighted_auroc(*arrays) for name, arrays in sides.items()}
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    block = block_size(n_id + n_ood)
    id_blocks = bootstrap_counts(n_id, spec.bootstrap, seeded(seed, "bootstrap"), block)
    ood_blocks = bootstrap_counts(n_ood, spec.bootstrap, seeded(seed, "bootstrap of OOD"), block)
    for id_NR, ood_NR in zip(id_blocks, ood_blocks, strict=True):
        for name, function in weighted.items():
            resampled[name].append(function(id_NR, ood_NR))
    return {name: percentile_interval(np.concatenate(values), spec.confidence) for name, values in resampled.items()}


def data_warnings(test: Predictions) -> list[str]:
    """What about the test set weakens the numbers, one sentence each."""
    labels_N = test.labels_N[test.labels_N != UNKNOWN_LABEL]
    n, unknown = len(labels_N), int((test.labels_N == UNKNOWN_LABEL).sum())
    warnings = []
    if not n:
        warnings.append("No sample has a label: accuracy, calibration and all that needs labels are left out.")
    elif unknown:
        warnings.append(f"{unknown:,} of {test.n_samples:,} samples have no label and are left out of what needs labels.")
    if 0 < n < SMALL_SET:
        warnings.append(f"Only {n} labelled test samples: intervals are wide and calibration errors are biased upward.")
    exists_C = np.ones(test.n_classes, dtype=bool) if test.mask_NC is None else test.mask_NC.any(axis=0)
    missing = np.flatnonzero(exists_C & (np.bincount(labels_N, minlength=test.n_classes) == 0)) if n else np.array([], dtype=int)
    if len(missing):
        names = ", ".join(f"'{test.classes[c]}'" for c in missing[:5]) + (", …" if len(missing) > 5 else "")
        verb = "occurs" if len(missing) == 1 else "occur"
        warnings.append(f"{len(missing)} of {test.n_classes} classes never {verb} in the test set ({names}).")
    if test.mask_NC is not None and len(np.unique(test.mask_NC.sum(axis=1))) > 1:
        warnings.append("The number of options varies: entropies are divided by the logarithm of each sample's number of options.")
    if len(set(test.ids_N)) < test.n_samples:
        warnings.append("Some sample ids occur more than once: paired comparisons are not possible.")
    return warnings


def headline(rows: list[Row], ood: list[OodSet]) -> list[str]:
    """Two to five plain sentences: accuracy, calibration, whether a temperature or vector scaling would help, OOD detection."""
    by_key = {row.key: row for row in rows}
    ensemble = by_key["ensemble"]
    sentences = []
    if "accuracy" in ensemble.metrics:
        sentences += [_accuracy_sentence(ensemble, by_key.get("before")), _calibration_sentence(ensemble)]
        for key, name in (("temperature", "A temperature"), ("vector", "Vector scaling")):
            if key in by_key:
                sentences.append(_scaling_sentence(name, ensemble, by_key[key]))
    else:
        sentences.append("No sample has a label, so accuracy and calibration cannot be judged.")
    if ood:
        sentences.append(_ood_sentence(ood))
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _percent_interval(metric: MetricValue) -> str:
    return "" if metric.low is None or metric.high is None else f" (interval {100 * metric.low:.1f} to {100 * metric.high:.1f} %)"


def _ece_of(row: Row) -> MetricValue:
    return next(value for key, value in row.metrics.items() if key.startswith("ece_top1_w"))


def _accuracy_sentence(ensemble: Row, before: Row | None) -> str:
    accuracy = ensemble.metrics["accuracy"]
    text = f"It is right on {_percent(accuracy.value)} of {accuracy.n:,} test samples{_percent_interval(accuracy)}"
    if before is not None and "accuracy" in before.metrics:
        text += f"; before training it was {_percent(before.metrics['accuracy'].value)}"
    return text + "."


def _calibration_sentence(ensemble: Row) -> str:
    """Uses the bin that holds a stated 90 % when it holds enough samples to say something, else the average."""
    ece = _ece_of(ensemble)
    bins = [b for b in ensemble.reliability if b.lower < 0.9 <= b.upper and b.count >= 30]
    error = f"calibration error {_percent(ece.value)}{_percent_interval(ece)}"
    if bins:
        b = bins[0]
        return (
            f"When it says {100 * b.confidence:.0f} %, it is right about {100 * b.accuracy:.0f} % of the time "
            f"({b.count:,} samples, interval {100 * b.accuracy_low:.0f} to {100 * b.accuracy_high:.0f} %); {error}."
        )
    accuracy = ensemble.metrics["accuracy"]
    mean = sum(b.count * b.confidence for b in ensemble.reliability) / accuracy.n
    gap = mean - accuracy.value
    word = "about as sure as it is right" if abs(gap) < 0.005 else "over-confident" if gap > 0 else "under-confident"
    return f"On average it says {_percent(mean)} and is right {_percent(accuracy.value)} of the time: {word}; {error}."


def _scaling_sentence(name: str, ensemble: Row, scaled: Row) -> str:
    """A change of the NLL below 1 % is called none; above, its direction decides."""
    before, after = ensemble.metrics["nll"].value, scaled.metrics["nll"].value
    ece = f"ECE {_percent(_ece_of(ensemble).value)} → {_percent(_ece_of(scaled).value)}"
    change = (after - before) / before if before > 0 else 0.0
    harm = "would do harm" if _ece_of(scaled).value >= _ece_of(ensemble).value else "would lower the ECE and raise the NLL"
    verdict = "would change little" if abs(change) < 0.01 else "would help" if change < 0 else harm
    return f"{name} fitted on validation {verdict}: NLL {before:.3f} → {after:.3f}, {ece}."


def _ood_sentence(ood: list[OodSet]) -> str:
    """Always the entropy where it was computed, else the first score: choosing the best one on the test sets would flatter."""
    name = "entropy" if all("entropy" in s.scores for s in ood) else next(iter(ood[0].scores))
    parts = []
    for s in ood[:3]:
        value = s.scores[name]["auroc_ood"]
        interval = "" if value.low is None else f" (interval {value.low:.3f} to {value.high:.3f})"
        parts.append(f"'{s.name}' with AUROC {value.value:.3f}{interval}")
    more = f" and {len(ood) - 3} more sets" if len(ood) > 3 else ""
    return f"By {name.replace('_', ' ')} it tells test inputs from {', '.join(parts)}{more}."
