"""Scores against label distributions: proper, exact at the extremes, refused when they are no distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

NAMES = ("nll_soft", "kl_soft", "brier_soft")


def predictions(probs_NC: np.ndarray, soft_NC: np.ndarray | None) -> Predictions:
    n, classes = probs_NC.shape
    ids, names = [f"s{i}" for i in range(n)], [str(c) for c in range(classes)]
    return Predictions(np.log(probs_NC)[None], np.full(n, -1), ids, names, "toy", "test", soft_labels_NC=soft_NC)


def value(name: str, view: Aggregated) -> float:
    return float(METRICS.resolve(name).compute(view))


def test_one_hot_distributions_give_the_hard_scores() -> None:
    rng = np.random.default_rng(0)
    probs_NC, labels_N = rng.dirichlet(np.ones(4), size=50), rng.integers(4, size=50)
    view = aggregate(replace(predictions(probs_NC, np.eye(4)[labels_N]), labels_N=labels_N))
    assert value("nll_soft", view) == pytest.approx(value("nll", view), rel=1e-12) == value("kl_soft", view)
    assert value("brier_soft", view) == pytest.approx(value("brier", view), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_label_distribution_itself_scores_best(name: str) -> None:
    rng = np.random.default_rng(1)
    soft_NC = rng.dirichlet(np.ones(3), size=200)
    best = value(name, aggregate(predictions(soft_NC, soft_NC)))
    entropy = -(soft_NC * np.log(soft_NC)).sum(axis=1).mean()
    assert best == pytest.approx(entropy if name == "nll_soft" else 0.0, abs=1e-12)
    for share in (0.05, 0.5):
        moved = (1 - share) * soft_NC + share * rng.dirichlet(np.ones(3), size=200)
        assert value(name, aggregate(predictions(moved, soft_NC))) > best + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_data_without_distributions(name: str) -> None:
    metric, view = METRICS.resolve(name), aggregate(predictions(np.full((3, 2), 0.5), None))
    assert not metric.applies(view) and math.isnan(metric.compute(view))


def test_stored_in_float32_they_count_as_distributions() -> None:
    shares = np.array([[1 / 3, 1 / 3, 1 / 3]], dtype=np.float32)
    view = aggregate(predictions(np.full((1, 3), 1 / 3), shares))
    assert view.soft_labels_NC is not None and view.soft_labels_NC.sum() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.2, -0.2], [math.nan, 1.0], [0.0, 0.0]])
def test_what_is_no_distribution_is_refused(row: list[float]) -> None:
    with pytest.raises(SveError, match="distribution of sample 's1' of 'toy:test' is no distribution"):
        aggregate(predictions(np.full((2, 2), 0.5), np.array([[0.5, 0.5], row])))


def test_mass_on_options_that_do_not_exist_is_refused_and_so_is_another_width() -> None:
    made = predictions(np.full((2, 2), 0.5), np.array([[1.0, 0.0], [0.5, 0.5]]))
    with pytest.raises(SveError, match="'s1'"):
        aggregate(replace(made, mask_NC=np.array([[True, True], [True, False]])))
    fine = aggregate(replace(made, mask_NC=np.array([[True, False], [True, True]])))
    assert value("nll_soft", fine) == pytest.approx(math.log(2) / 2)
    with pytest.raises(SveError, match=r"shape \(2, 3\), its predictions \(2, 2\)"):
        aggregate(replace(made, soft_labels_NC=np.full((2, 3), 1 / 3)))
