"""Known ways in which an ensemble fails, each tested on the test set: what was measured, and which setting to try.

Works from predictions alone. Shapes: M members, N samples, U units, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sve_cli.metrics.aggregate import Aggregated, aggregate, aggregate_each
from sve_cli.metrics.base import weighted_mean
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.intervals import FEWEST, WORK, resampling_units, weight_blocks
from sve_cli.metrics.sums import Sums
from sve_cli.ood.base import OodScore
from sve_cli.ood.build import build_scores
from sve_cli.ood.detection import auroc_ood, weighted_auroc
from sve_cli.ood.joint import join
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.report import Direction, MetricValue, Signature
from sve_cli.statistics import block_size, bootstrap_counts, percentile_interval, seeded

RESAMPLES = 400  # at most
HELPS = 0.1  # share of the calibration error that another way of averaging must take away to be advised
ALIKE = 0.05  # members that disagree on fewer samples than this share of their errors agree everywhere


def diagnose(
    test: Predictions,
    ood: Sequence[tuple[str, Predictions]],
    spec: EvaluateSpec,
    *,
    view: Aggregated | None = None,
    members: Sequence[Aggregated] = (),
    before: Predictions | None = None,
    training: TrainingFeatures | None = None,
    seed: int = 0,
) -> list[Signature]:
    """Every signature that this data can show, found or not.

    Calibration and agreement need several members and labels, the collapse labels, the last OOD sets and two scores.

    Args:
        ood: OOD sets with their names.
        view, members: `test` and each of its members aggregated, if they are there already.
        before: predictions of the checkpoint before training.
    """
    view = aggregate(test, spec.aggregate) if view is None else view
    labelled = view.labelled()
    found = []
    if labelled.n:
        known = test if labelled.n == test.n_samples else test.subset(test.labels_N != UNKNOWN_LABEL)
        found.append(_collapse(known, labelled, before, spec, seed))
        if test.n_members > 1:
            alone = [member.labelled() for member in members] or aggregate_each(known, spec.aggregate)
            found += [_worse_calibrated(known, labelled, alone, spec, seed), _agreeing(labelled, alone, spec, seed)]
    scores = build_scores([name for name in spec.ood_scores if name != "max_probability"], training) if ood else []
    found += [_no_gain(name, test, other, scores, spec, seed) for name, other in ood if scores]
    return found


def _worse_calibrated(known: Predictions, view: Aggregated, members: list[Aggregated], spec: EvaluateSpec, seed: int) -> Signature:
    """The ensemble's calibration error above the mean of its members'."""
    units = resampling_units(view, seed)
    ensemble = ece_top1.prepare(units, spec.bins)
    others = [ece_top1.prepare(resampling_units(member, seed), spec.bins) for member in members]
    definition = "Calibration error (ECE) of the ensemble minus the mean of its members'."
    value = _measured(
        units, lambda w: ensemble(w) - np.mean([other(w) for other in others], axis=0), definition, "lower", spec, seed
    )
    own, gap = ece_top1.compute(view, spec.bins), float(view.correct_N.mean() - view.confidence_N.mean())
    side = "Averaging makes it less sure than it is right" if gap > 0 else "It is surer than it is right"
    way = "probs" if spec.aggregate == "logits" else "logits"
    averaged = ece_top1.compute(aggregate(known, way), spec.bins)
    helps = averaged < (1 - HELPS) * own
    other = f"With {way} averaged it would be {100 * averaged:.1f} %"
    rest = "; a temperature can mend the rest." if helps else ", which mends nothing; a temperature fitted on enough rows can."
    return Signature(
        "calibration_worse_than_members",
        "Calibration worse than its members'",
        value.value > 0 and (value.low is None or value.low > 0),
        f"The ensemble's calibration error is {100 * own:.1f} %, {100 * abs(value.value):.1f} points "
        f"{'above' if value.value > 0 else 'below'} the mean of its members'.",
        value,
        f"evaluate.aggregate: {way}" if helps else f"train.epochs: {'more' if gap > 0 else 'fewer'} of them",
        f"{side}. {other}{rest}",
    )


def _collapse(known: Predictions, view: Aggregated, before: Predictions | None, spec: EvaluateSpec, seed: int) -> Signature:
    """Accuracy no better than naming the most frequent class, or than before training."""
    frequent = int(np.bincount(view.labels_N, minlength=view.n_classes).argmax())
    other_N, name = (view.labels_N == frequent).astype(np.float64), f"always naming '{known.classes[frequent]}'"
    if before is not None and (earlier := aggregate(before).labelled()).n == view.n and earlier.correct_N.mean() > other_N.mean():
        other_N, name = earlier.correct_N, "before training"
    units = resampling_units(view, seed)
    definition = "Accuracy minus that of always naming the most frequent class, or that before training where it is higher."
    value = _measured(units, weighted_mean(units, view.correct_N - other_N), definition, "higher", spec, seed)
    return Signature(
        "accuracy_collapse",
        "Accuracy collapse",
        value.value <= 0,
        f"It is right on {100 * view.correct_N.mean():.1f} % of the samples; {name}: {100 * other_N.mean():.1f} %.",
        value,
        "train.lr: a third of it",
        "Train more gently, or start the members closer to the checkpoint (sve: method.params.sigma_init: 0.001).",
    )


def _agreeing(view: Aggregated, members: list[Aggregated], spec: EvaluateSpec, seed: int) -> Signature:
    """Members whose votes differ on far fewer samples than they are wrong about."""
    units, wrong_N = resampling_units(view, seed), np.mean([1.0 - member.correct_N for member in members], axis=0)
    apart, wrong = weighted_mean(units, view.disagreement_N), weighted_mean(units, wrong_N)

    def ratio(weights_UR: np.ndarray) -> np.ndarray:
        apart_R, wrong_R = apart(weights_UR), wrong(weights_UR)
        return np.divide(apart_R, wrong_R, out=np.zeros_like(apart_R), where=wrong_R > 0)

    definition = "Disagreement of two members divided by a member's error rate; 0 where they agree everywhere."
    value = _measured(units, ratio, definition, "higher", spec, seed)
    return Signature(
        "members_agree",
        "Members that agree everywhere",
        bool(wrong_N.any()) and value.value < ALIKE,
        f"Two members disagree on {100 * view.disagreement_N.mean():.2f} % of the samples; a member is wrong on "
        f"{100 * wrong_N.mean():.2f} %.",
        value,
        "method.params.sigma_init: 0.03",
        "Start the members further apart, or give each its own batches (method.params.member_batches: independent).",
    )


def _no_gain(name: str, test: Predictions, other: Predictions, scores: list[OodScore], spec: EvaluateSpec, seed: int) -> Signature:
    """No score tells the set from the test set better than the largest probability does."""
    joined, n_id = join(test, other), test.n_samples
    plain = np.split(build_scores(["max_probability"])[0].score(joined, spec.aggregate), [n_id])
    sides = {score.name: np.split(score.score(joined, spec.aggregate), [n_id]) for score in scores}
    base = auroc_ood(*plain)
    gains = {score: auroc_ood(*arrays) - base for score, arrays in sides.items()}
    best = max(gains, key=lambda score: gains[score])
    low = high = None
    resamples = min(spec.bootstrap, RESAMPLES, max(FEWEST, WORK // joined.n_samples))
    if resamples:
        of_plain, of_best = weighted_auroc(*plain), weighted_auroc(*sides[best])
        width = block_size(joined.n_samples)
        purposes = ((n_id, "bootstrap"), (other.n_samples, "bootstrap of OOD"))
        blocks = zip(*(bootstrap_counts(n, resamples, seeded(seed, what), width) for n, what in purposes), strict=True)
        drawn_R = np.concatenate([of_best(*weights) - of_plain(*weights) for weights in blocks])
        low, high = _around(gains[best], drawn_R, spec.confidence)
    shown = best.replace("_", " ")
    definition = f"AUROC on '{name}' of the best of the other scores ({shown}) minus that of the largest probability."
    return Signature(
        f"ood_no_gain.{name}",
        f"'{name}' told apart no better than by the largest probability",
        gains[best] <= 0 or (low is not None and low <= 0),
        f"The best of the other scores, {shown}, has AUROC {base + gains[best]:.3f} and the largest probability {base:.3f}.",
        MetricValue(gains[best], joined.n_samples, "higher", definition, low, high),
        "evaluate.ood_scores: [max_probability, mahalanobis, knn]",
        "Try the scores in feature space, or more and more different members (method.members, method.params.sigma_init).",
    )


def _measured(
    units: Aggregated, function: Sums, definition: str, direction: Direction, spec: EvaluateSpec, seed: int
) -> MetricValue:
    """A number with the interval of its resamples, moved onto it: what is biased in a resample is so for both sides."""
    value = float(function(np.ones((units.n_units or units.n, 1)))[0])
    low = high = None
    resamples = min(spec.bootstrap, RESAMPLES)
    if resamples:
        drawn_R = np.concatenate([function(weights_UR) for weights_UR in weight_blocks(units, resamples, seed)])
        low, high = _around(value, drawn_R, spec.confidence)
    return MetricValue(value, units.n, direction, definition, low, high)


def _around(value: float, drawn_R: np.ndarray, confidence: float) -> tuple[float, float]:
    return percentile_interval(drawn_R - drawn_R.mean() + value, confidence)
