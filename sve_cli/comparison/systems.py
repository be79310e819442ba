"""Two systems, or several seeds of two, compared metric by metric on the samples they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from sve_cli.comparison.paired import Settings, Statistic, differences, holm, seed_pairs
from sve_cli.comparison.pairing import align
from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.metrics.aggregate import Aggregated, ood_name, source_name
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.metrics.base import DEFAULT_BINS, Metric, Weighted
from sve_cli.metrics.distribution import Distribution
from sve_cli.ood.base import OodScore
from sve_cli.ood.detection import DETECTION, weighted_auroc
from sve_cli.ood.joint import join
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS, OOD_SCORES
from sve_cli.render.tables import metric_name, score_name
from sve_cli.report import Direction
from sve_cli.statistics import require_aggregate

BOOTSTRAP, PERMUTATIONS, CONFIDENCE = 2000, 2000, 0.95
SCORES = ("entropy", "mutual_information")
# These are 0 for one network whatever it does, so they say nothing about a pair with one.
OF_SEVERAL_MEMBERS = ("disagreement", "variation_ratio_mean", "mutual_information_mean", "mutual_information")
Ways = str | tuple[str | Sequence[str], str | Sequence[str]]


def compare_predictions(
    reference: Predictions,
    other: Predictions,
    aggregate: Ways = "probs",
    bins: int = DEFAULT_BINS,
    metrics: Sequence[str] = (),
    bootstrap: int = BOOTSTRAP,
    permutations: int = PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Difference]:
    """Differences `other` - `reference` on the samples both have, one row a metric, in the order of `metrics`.

    Interval: percentiles of the resampled differences around the difference seen, the same resamples on both sides. p:
    two-sided permutation test of the hypothesis that the two systems can be exchanged in every sample. `p_holm` is corrected
    for the rows returned.

    Args:
        aggregate: how members are averaged, see `metrics.aggregate`; a pair: the reference's way and the other's, each one way
            or one for every seed.
        bins: bins of the calibration errors.
        metrics: names of the registry; none: all. Those that need what a side lacks (labels, several members) are left out.
        bootstrap, permutations: how many resamples; metrics with a limit of their own take fewer. 0 permutations: no p.

    Raises:
        SveError: the predictions do not fit together (see `align`), an unknown metric, or none that can be compared.
    """
    return compare_seeds([reference], [other], aggregate, bins, metrics, bootstrap, permutations, confidence, seed)


def compare_seeds(
    references: Sequence[Predictions],
    others: Sequence[Predictions],
    aggregate: Ways = "probs",
    bins: int = DEFAULT_BINS,
    metrics: Sequence[str] = (),
    bootstrap: int = BOOTSTRAP,
    permutations: int = PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Difference]:
    """As `compare_predictions`, with several seeds a side: a side's number is the mean of its seeds' numbers.

    Resample weights are shared by all seeds and both sides, so intervals and p-values speak of other test samples for these
    trained networks, not of other training seeds. A swap exchanges all seeds of a sample at once. The sides may differ in
    their number of seeds.

    Raises:
        SveError: as `compare_predictions`, or a side without seeds.
    """
    settings = Settings("probs", bins, bootstrap, permutations, confidence, seed)
    settings.check()
    systems = align([*references, *others], side_names(references, others)).predictions
    ways = _ways(aggregate, len(references), len(others))
    views = [aggregate_members(system, way) for system, way in zip(systems, ways, strict=True)]
    chosen = usable_metrics(metrics or list(METRICS), systems, views)
    if not chosen:
        raise SveError("There is no metric that both sides have.", "Name others, or compare predictions with labels.")
    return compare_views(views[: len(references)], views[len(references) :], chosen, settings)


def compare_views(
    references: Sequence[Aggregated], others: Sequence[Aggregated], metrics: Mapping[str, Metric], settings: Settings
) -> list[Difference]:
    """As `compare_seeds`, of the views of samples that are in one order already; `metrics` by name, each usable for all views."""
    # One pass over the resamples for all metrics about equally many samples: with all labels known that is one pass.
    sizes = {name: metric.rows(references[0]).n for name, metric in metrics.items()}
    rows: dict[str, Difference] = {}
    for n in dict.fromkeys(sizes.values()):
        part = {name: metric for name, metric in metrics.items() if sizes[name] == n}
        rows |= zip(part, differences(_statistics(part, references, others, settings.bins), [n], settings), strict=True)
    return holm([rows[name] for name in metrics])


def compare_ood(
    references: Sequence[tuple[Predictions, Predictions]],
    others: Sequence[tuple[Predictions, Predictions]],
    aggregate: Ways = "probs",
    scores: Sequence[str] = SCORES,
    bootstrap: int = BOOTSTRAP,
    permutations: int = PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Difference]:
    """Differences of the AUROC with which each side tells an OOD set from the test set; a seed is (test, OOD).

    Both sets are resampled, each within itself. For the permutation the scores of a system are first replaced by their ranks,
    which leaves its AUROC as it is and makes two systems comparable (Venkatraman and Begg, Biometrika 1996). Scores that need
    several members are left out when a side has one.

    Raises:
        SveError: the predictions do not fit together, or an unknown score.
    """
    settings = Settings("probs", DEFAULT_BINS, bootstrap, permutations, confidence, seed)
    settings.check()
    ways = _ways(aggregate, len(references), len(others))
    names = side_names(references, others)
    tests = align([test for test, _ in (*references, *others)], names).predictions
    oods = align([ood for _, ood in (*references, *others)], names).predictions
    joined = [join(test, ood) for test, ood in zip(tests, oods, strict=True)]
    strata = [tests[0].n_samples, oods[0].n_samples]
    single = any(test.n_members == 1 for test in tests)
    chosen: list[OodScore] = [OOD_SCORES.resolve(name)() for name in scores if not (single and name in OF_SEVERAL_MEMBERS)]
    where = ood_name(source_name(oods[0]))
    statistics = []
    for score in chosen:
        values = [score.score(system, way) for system, way in zip(joined, ways, strict=True)]
        statistics.append(auroc_statistic(where, score, values[: len(references)], values[len(references) :], strata[0]))
    return differences(statistics, strata, settings) if statistics else []


def auroc_statistic(
    where: str, score: OodScore, references: Sequence[np.ndarray], others: Sequence[np.ndarray], n_id: int
) -> Statistic:
    """The AUROC on the set `where`; a seed is the scores of `n_id` ID samples and after them those of the OOD samples.

    Scores become ranks: see `compare_ood`.
    """
    ours, theirs = ([np.asarray(rankdata(values_N)) for values_N in side] for side in (references, others))
    return Statistic(
        *describe_auroc(where, score),
        [auroc_of(ranks_N, n_id) for ranks_N in ours],
        [auroc_of(ranks_N, n_id) for ranks_N in theirs],
        [_stacked_auroc(ours[a], theirs[b], n_id) for a, b in seed_pairs(len(ours), len(theirs))],
    )


def usable_metrics(names: Sequence[str], systems: Sequence[Predictions], views: Sequence[Aggregated]) -> dict[str, Metric]:
    """The metrics that mean something for all systems: labels are known, and there are members to disagree."""
    single = any(system.n_members == 1 for system in systems)
    found: dict[str, Metric] = {name: METRICS.resolve(name) for name in dict.fromkeys(names)}
    return {
        name: metric
        for name, metric in found.items()
        if not (single and name in OF_SEVERAL_MEMBERS) and metric.applies(views[0]) and metric.rows(views[0]).n
    }


def side_names(references: Sequence[object], others: Sequence[object]) -> list[str]:
    """What messages call the systems of both sides.

    Raises:
        SveError: a side is empty.
    """
    if not references or not others:
        raise SveError("A comparison needs at least one system on each side.")
    named = (("A", references), ("B", others))
    return [side if len(seeds) == 1 else f"{side}, seed {k + 1}" for side, seeds in named for k in range(len(seeds))]


def _statistics(
    metrics: dict[str, Metric], references: Sequence[Aggregated], others: Sequence[Aggregated], bins: int
) -> list[Statistic]:
    """The metrics prepared on each system and on each pair of systems; a pair's rows are in memory only while it is prepared."""

    def prepared(view: Aggregated) -> list[Weighted]:
        return [metric.prepare(metric.rows(view), bins) for metric in metrics.values()]

    sides = [[prepared(view) for view in side] for side in (references, others)]
    stacked = [prepared(_stack(references[a], others[b])) for a, b in seed_pairs(len(references), len(others))]
    return [
        Statistic(
            *describe(metric, bins),
            [functions[i] for functions in sides[0]],
            [functions[i] for functions in sides[1]],
            [functions[i] for functions in stacked],
            metric.max_resamples,
        )
        for i, metric in enumerate(metrics.values())
    ]


def _ways(aggregate: Ways, references: int, others: int) -> list[str]:
    """How each system's members are averaged."""
    sides = (aggregate, aggregate) if isinstance(aggregate, str) else aggregate
    ways = [[way] * n if isinstance(way, str) else list(way) for way, n in zip(sides, (references, others), strict=True)]
    for way in (*ways[0], *ways[1]):
        require_aggregate(way)
    return [*ways[0], *ways[1]]


def _stack(first: Aggregated, second: Aggregated) -> Aggregated:
    """The samples of both, one after another."""
    pairs = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}
    arrays: dict[str, Any] = {n: np.concatenate(pair) for n, pair in pairs.items() if isinstance(pair[0], np.ndarray)}
    masks = np.concatenate([first.exists_NC, second.exists_NC])
    both = Distribution(masks, np.concatenate([first.log_probs_NC, second.log_probs_NC]))
    return replace(first, distribution=both, **arrays)


def describe(metric: Metric, bins: int) -> tuple[str, str, str, str, Direction, str]:
    """Key, metric, group, label, direction and definition of a metric."""
    key = metric.key(bins)
    return key, key, "", metric_name(key), metric.direction, metric.definition(bins)


def describe_auroc(where: str, score: OodScore) -> tuple[str, str, str, str, Direction, str]:
    """Key, metric, group, label, direction and definition of the AUROC on the set `where`."""
    detection = DETECTION["auroc_ood"]
    label = f"{metric_name('auroc_ood')} by {score_name(score.name).lower()}"
    definition = f"{detection.definition} Score: {score.definition}"
    return f"ood.{where}.{score.name}.auroc_ood", "auroc_ood", where, label, detection.direction, definition


def auroc_of(scores_N: np.ndarray, n_id: int) -> Weighted:
    """AUROC as a function of the weights of the ID samples followed by the OOD samples."""
    function = weighted_auroc(scores_N[:n_id], scores_N[n_id:])
    return lambda weights_NR: function(weights_NR[:n_id], weights_NR[n_id:])


def _stacked_auroc(first_N: np.ndarray, second_N: np.ndarray, n_id: int) -> Weighted:
    """The same of two systems' samples, one system after the other."""
    n = len(first_N)
    function = weighted_auroc(np.concatenate([first_N[:n_id], second_N[:n_id]]), np.concatenate([first_N[n_id:], second_N[n_id:]]))

    def weighted(weights_NR: np.ndarray) -> np.ndarray:
        first_NR, second_NR = weights_NR[:n], weights_NR[n:]
        return function(np.concatenate([first_NR[:n_id], second_NR[:n_id]]), np.concatenate([first_NR[n_id:], second_NR[n_id:]]))

    return weighted
