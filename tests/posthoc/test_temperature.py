from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.posthoc.state import Posthoc, split_validation
from sve_cli.posthoc.temperature import HIGHEST, LOWEST, Temperature, fit_temperature
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS


def synthetic(true_t: float, members: int = 1, n: int = 6000, classes: int = 5, noise: float = 0.0) -> Predictions:
    """Labels drawn from softmax(z / true_t), so that true_t is the right temperature for logits z."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes)) * 2.0 * true_t
    cumulative = softmax(logits / true_t, axis=1).cumsum(axis=1)
    labels = (cumulative < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    members_MNC = (logits + noise * rng.normal(size=(members, n, classes))).astype(np.float32)
    return Predictions(members_MNC, labels, [str(i) for i in range(n)], [str(c) for c in range(classes)], "toy", "validation")


@pytest.mark.parametrize("true_t", [0.4, 1.0, 3.0])
def test_recovers_a_known_temperature(true_t: float) -> None:
    assert fit_temperature(synthetic(true_t), "probs").value == pytest.approx(true_t, rel=0.04)


@pytest.mark.parametrize("how", ["probs", "logits"])
def test_is_the_minimum_of_the_ensembles_nll(how: str) -> None:
    """NLLs agree with the metric on the scaled members, and no neighbouring T does better."""
    predictions = synthetic(2.0, members=3, n=800, noise=2.0)
    fitted, nll = fit_temperature(predictions, how), METRICS.resolve("nll")
    assert fitted.n == 800 and not fitted.at_bound
    assert fitted.nll_before == pytest.approx(nll.compute(aggregate(predictions, how)), rel=1e-9)
    scaled = replace(predictions, logits_MNC=predictions.logits_MNC.astype(np.float64))
    assert fitted.nll_after == pytest.approx(nll.compute(aggregate(fitted.apply(scaled), how)), rel=1e-9)
    for t in np.geomspace(LOWEST, HIGHEST, 60):
        assert nll.compute(aggregate(Temperature(float(t), 0, 0.0, 0.0).apply(scaled), how)) >= fitted.nll_after - 1e-9


def test_missing_options_and_labels_are_left_out() -> None:
    predictions = synthetic(2.0, n=500)
    wide = np.concatenate([predictions.logits_MNC, np.full((1, 500, 1), np.nan, dtype=np.float32)], axis=2)
    mask = np.tile(np.arange(6) < 5, (500, 1))
    labels = np.where(np.arange(500) < 300, predictions.labels_N, -1)
    masked = Predictions(wide, labels, predictions.ids_N, list("abcdef"), mask_NC=mask)
    assert fit_temperature(masked, "probs") == fit_temperature(predictions.subset(np.arange(300)), "probs")


def test_all_right_runs_into_the_bound() -> None:
    logits = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype=np.float32)
    fitted = fit_temperature(Predictions(logits, np.array([0, 1]), ["a", "b"], ["x", "y"]), "probs")
    assert fitted.at_bound and LOWEST <= fitted.value < 0.06 and fitted.nll_after <= fitted.nll_before


def test_refusals() -> None:
    predictions = synthetic(1.0, n=10)
    with pytest.raises(SveError, match="needs labels"):
        fit_temperature(replace(predictions, labels_N=np.full(10, -1)), "probs")
    with pytest.raises(SveError, match="'4' of 'toy:validation' are not finite"):
        bad = predictions.logits_MNC.copy()
        bad[0, 4, 1] = np.nan
        fit_temperature(replace(predictions, logits_MNC=bad), "probs")
    with pytest.raises(SveError, match="Unknown aggregate"):
        fit_temperature(predictions, "votes")


def test_state_round_trip() -> None:
    state = Posthoc(Temperature(1.25, 10, 0.5, 0.25))
    assert Posthoc.from_json(state.to_json()) == state
    assert Posthoc.from_json(Posthoc().to_json()) == Posthoc(None)
    for damaged in ("{", "[]", "{}", '{"schema": "sve-posthoc/1"}', '{"schema": "sve-posthoc/1", "temperature": {"warmth": 1}}'):
        with pytest.raises(SveError, match="post-hoc document"):
            Posthoc.from_json(damaged)


@pytest.mark.parametrize("n", [0, 1, 2, 101])
def test_split_is_a_partition_by_seed(n: int) -> None:
    selection, calibration = split_validation(n, 3)
    assert sorted([*selection, *calibration]) == list(range(n)) and 0 <= len(selection) - len(calibration) <= 1
    assert (np.diff(selection) > 0).all() and (np.diff(calibration) > 0).all()
    assert (split_validation(n, 3)[0] == selection).all()
    if n > 2:
        assert split_validation(n, 4)[0].tolist() != selection.tolist()
