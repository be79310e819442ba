"""Decisions: fitted on the calibration half of validation, measured on test, applied to new inputs.

Works from predictions alone. Every rule reads the ensemble's own probabilities, without temperature or vector scaling.
Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.ood.base import OodScore
from sve_cli.ood.build import build_scores
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.posthoc.conformal import Conformal, fit_conformal
from sve_cli.posthoc.state import Posthoc
from sve_cli.posthoc.thresholds import Abstention, OodThreshold, fit_abstention, fit_ood_threshold
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.report import Decision, Direction, MetricValue
from sve_cli.statistics import bootstrap_counts, percentile_interval, seeded, wilson_interval

ANSWER, ABSTAIN, OUT = "answer", "abstain", "out of distribution"
SMALL_CALIBRATION = 100


@dataclass(frozen=True)
class Decided:
    """The decisions on N samples.

    Attributes:
        view: the ensemble's distribution.
        decision_N: "answer", "abstain" or "out of distribution".
        ood_score_N: the score behind the latter; None without a threshold.
        sets_NC: bool, the conformal sets; None where none were fitted.
    """

    view: Aggregated
    decision_N: list[str]
    ood_score_N: np.ndarray | None
    sets_NC: np.ndarray | None


def fit_decisions(
    posthoc: Posthoc, calibration: Predictions, spec: EvaluateSpec, training: TrainingFeatures | None = None
) -> Posthoc:
    """The same state with the thresholds and conformal sets that the recipe asks for.

    Args:
        calibration: predictions on the calibration half of validation; samples without a label serve the OOD threshold only.

    Raises:
        SveError: logits that are not finite, or a score in feature space without features.
    """
    if not calibration.n_samples:
        return posthoc
    labelled = aggregate(calibration, spec.aggregate).labelled()
    abstention = conformal = ood_threshold = None
    if labelled.n and spec.target_risk is not None:
        abstention = fit_abstention(labelled.confidence_N, labelled.correct_N, spec.target_risk, spec.confidence)
    if labelled.n and spec.conformal != "none":
        conformal = fit_conformal(labelled.probs_NC, labelled.labels_N, spec.conformal, spec.conformal_alpha)
    if spec.ood_decision is not None:
        score = build_scores([spec.ood_decision], training)[0]
        ood_threshold = fit_ood_threshold(score_alone(score, calibration, spec.aggregate), spec.ood_decision, spec.ood_keep)
    return replace(posthoc, abstention=abstention, ood_threshold=ood_threshold, conformal=conformal)


def score_alone(score: OodScore, predictions: Predictions, aggregate: str) -> np.ndarray:
    """OOD scores (N,) that do not depend on the other samples of the set: entropies stay in nats whatever the options are."""
    if predictions.mask_NC is None:
        return score.score(predictions, aggregate)
    counts_N = predictions.mask_NC.sum(axis=1)
    scores_N = np.zeros(predictions.n_samples)
    for count in np.unique(counts_N):
        rows = np.flatnonzero(counts_N == count)
        scores_N[rows] = score.score(predictions.subset(rows), aggregate)
    return scores_N


def decide(predictions: Predictions, posthoc: Posthoc, how: str, training: TrainingFeatures | None = None) -> Decided:
    """Apply a run's rules to predictions: out of distribution first, then abstain, else answer.

    Raises:
        SveError: logits that are not finite, or a threshold in feature space without features.
    """
    view = aggregate(predictions, how)
    decision_N = np.full(view.n, ANSWER, dtype=object)
    if posthoc.abstention is not None:
        decision_N[~posthoc.abstention.answers(view.confidence_N)] = ABSTAIN
    scores_N = None
    if posthoc.ood_threshold is not None:
        scores_N = score_alone(build_scores([posthoc.ood_threshold.score], training)[0], predictions, how)
        decision_N[posthoc.ood_threshold.flags(scores_N)] = OUT
    sets_NC = None if posthoc.conformal is None else posthoc.conformal.sets(view.probs_NC, view.exists_NC)
    return Decided(view, decision_N.tolist(), scores_N, sets_NC)


def measure_decisions(
    test: Predictions,
    ood: Mapping[str, Predictions],
    posthoc: Posthoc,
    spec: EvaluateSpec,
    seed: int = 0,
    training: TrainingFeatures | None = None,
    view: Aggregated | None = None,
) -> list[Decision]:
    """What every fitted rule did on the test set, and on the OOD sets by name.

    Args:
        view: `test` aggregated, if it is there already.

    Raises:
        SveError: as `decide`.
    """
    labelled = (aggregate(test, spec.aggregate) if view is None else view).labelled()
    found = []
    if posthoc.conformal is not None and labelled.n:
        found.append(_conformal(posthoc.conformal, labelled, spec, seed))
    if posthoc.abstention is not None and labelled.n:
        found.append(_abstention(posthoc.abstention, labelled, spec.confidence))
    if posthoc.ood_threshold is not None:
        score = build_scores([posthoc.ood_threshold.score], training)[0]
        scores = {name: score_alone(score, part, spec.aggregate) for name, part in ood.items()}
        found.append(_ood(posthoc.ood_threshold, score_alone(score, test, spec.aggregate), scores, spec.confidence))
    return found


def cautions(posthoc: Posthoc) -> list[str]:
    """What was fitted on too few samples, and what could not be fitted at all; one sentence each."""
    small = [
        f"{name} ({rule.n})"
        for name, rule in (
            ("temperature", posthoc.temperature),
            ("abstention threshold", posthoc.abstention),
            ("OOD threshold", posthoc.ood_threshold),
            ("conformal sets", posthoc.conformal),
        )
        if rule is not None and rule.n < SMALL_CALIBRATION
    ]
    found = []
    if small:
        found.append(f"Fitted on few validation samples, so they would vary with another draw: {', '.join(small)}.")
    for rule in (posthoc.abstention, posthoc.ood_threshold, posthoc.conformal):
        if rule is not None and rule.threshold is None:
            sentence = rule.guarantee.removeprefix("None: ")
            found.append(sentence[:1].upper() + sentence[1:])
    return found


def _conformal(rule: Conformal, view: Aggregated, spec: EvaluateSpec, seed: int) -> Decision:
    sets_NC = rule.sets(view.probs_NC, view.exists_NC)
    sizes_N = sets_NC.sum(axis=1).astype(np.float64)
    hit_N = sets_NC[np.arange(view.n), view.labels_N]
    low = high = None
    if spec.bootstrap:
        blocks = bootstrap_counts(view.n, spec.bootstrap, seeded(seed, "bootstrap"))
        low, high = percentile_interval(np.concatenate([sizes_N @ weights_NR / view.n for weights_NR in blocks]), spec.confidence)
    size = MetricValue(float(sizes_N.mean()), view.n, "lower", "Mean number of classes in a conformal set.", low, high)
    words = "Every class."
    if rule.threshold is not None and rule.kind == "lac":
        words = f"Every class with probability at least {1 - rule.threshold:.4g}."
    elif rule.threshold is not None:
        words = f"The most probable classes as long as their probabilities add up to at most {rule.threshold:.4g}."
    measured = {
        "coverage": _share(hit_N, "higher", "Share of test samples whose conformal set holds their class.", spec.confidence),
        "mean_set_size": size,
        "one_class": _share(sizes_N == 1, "higher", "Share of test samples whose conformal set holds one class.", spec.confidence),
        "empty": _share(sizes_N == 0, "none", "Share of test samples whose conformal set is empty.", spec.confidence),
    }
    title = f"Conformal sets ({rule.kind.upper()}, at least {100 * (1 - rule.alpha):.4g} % coverage)"
    return Decision("conformal", title, words, rule.n, rule.guarantee, rule.assumption, measured)


def _abstention(rule: Abstention, view: Aggregated, confidence: float) -> Decision:
    answered_N = rule.answers(view.confidence_N)
    words = "Every input is answered."
    if rule.threshold is not None:
        words = f"Answer when the largest probability is at least {rule.threshold:.4g}, else abstain."
    measured = {"answered": _share(answered_N, "higher", "Share of test samples that are answered.", confidence)}
    if answered_N.any():
        wrong_N = view.correct_N[answered_N] == 0
        measured["risk"] = _share(wrong_N, "lower", "Share of wrong answers among the test samples that are answered.", confidence)
    title = f"Abstaining (at most {100 * rule.target_risk:.4g} % errors among answers)"
    return Decision("abstention", title, words, rule.n, rule.guarantee, rule.assumption, measured)


def _ood(rule: OodThreshold, test_N: np.ndarray, ood: Mapping[str, np.ndarray], confidence: float) -> Decision:
    name = rule.score.replace("_", " ")
    words = "No input is called out of distribution."
    if rule.threshold is not None:
        words = f"Out of distribution when the {name} exceeds {rule.threshold:.4g}."
    kept = "Share of test samples that are not called out of distribution."
    measured = {"id_kept": _share(~rule.flags(test_N), "higher", kept, confidence)}
    for set_name, scores_N in ood.items():
        what = f"Share of '{set_name}' that is called out of distribution."
        measured[f"flagged.{set_name}"] = _share(rule.flags(scores_N), "higher", what, confidence)
    title = f"Out of distribution (by {name}, keeping {100 * rule.keep:.4g} % of in-distribution inputs)"
    return Decision("ood", title, words, rule.n, rule.guarantee, rule.assumption, measured)


def _share(which_N: np.ndarray, direction: Direction, definition: str, confidence: float) -> MetricValue:
    n, hits = len(which_N), float(which_N.sum())
    return MetricValue(hits / n, n, direction, f"{definition} Wilson interval.", *wilson_interval(hits, n, confidence))
