"""Vector scaling: gradient, recovery of known values, its special cases, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

import sve_cli.posthoc.vector as module
from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.posthoc.state import Posthoc
from sve_cli.posthoc.temperature import Temperature, fit_temperature
from sve_cli.posthoc.vector import Vector, fit_vector, nll_and_gradient, options_vary
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

W, B = np.array([0.5, 0.6, 0.4, 0.55]), np.array([0.6, -0.4, 0.2, -0.4])
NLL = METRICS.resolve("nll")


def synthetic(members: int = 1, n: int = 4000, noise: float = 0.0, seed: int = 0) -> Predictions:
    """Labels drawn from softmax(W ∘ z + B), so that these are the right weights and biases for logits z."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(size=(n, 4)) * 4.0
    cumulative = softmax(logits_NC * W + B, axis=1).cumsum(axis=1)
    labels_N = (cumulative < rng.random((n, 1))).sum(axis=1).clip(max=3)
    logits_MNC = logits_NC + noise * rng.normal(size=(members, n, 4))
    return Predictions(logits_MNC, labels_N, [str(i) for i in range(n)], list("abcd"), "toy", "validation")


@pytest.mark.parametrize("how", ["probs", "logits"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_that_of_finite_differences(how: str, masked: bool) -> None:
    predictions = synthetic(3, n=40, noise=2.0)
    if masked:
        garbage = predictions.logits_MNC.copy()
        garbage[:, :, 3] = np.nan
        mask_NC = np.tile(np.arange(4) < 3, (40, 1))
        predictions = replace(predictions, logits_MNC=garbage, labels_N=predictions.labels_N % 3, mask_NC=mask_NC)
    function, theta, step = nll_and_gradient(predictions, how), np.random.default_rng(1).normal(size=8), 1e-6
    value, gradient = function(theta)
    differences = [(function(theta + step * e)[0] - function(theta - step * e)[0]) / (2 * step) for e in np.eye(8)]
    np.testing.assert_allclose(gradient, differences, atol=1e-8)
    made = Vector(theta[:4].tolist(), theta[4:].tolist(), 1.0, 40, 0.0, 0.0)
    assert value == pytest.approx(NLL.compute(aggregate(made.apply(predictions), how)), rel=1e-12)


def test_recovers_known_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prior exactly up to sampling; with it, near, for it fades with the number of samples."""
    predictions = synthetic(n=30000)
    tight = fit_vector(predictions, "probs")
    monkeypatch.setattr(module, "WEIGHT_SCALE", 1e6)
    monkeypatch.setattr(module, "BIAS_SCALE", 1e6)
    loose = fit_vector(predictions, "probs")
    for fitted, tolerance in ((loose, 0.03), (tight, 0.05)):
        np.testing.assert_allclose(fitted.weight, W, atol=tolerance / 2)
        np.testing.assert_allclose(np.array(fitted.bias) - np.mean(fitted.bias), B - B.mean(), atol=2 * tolerance)


@pytest.mark.parametrize("how", ["probs", "logits"])
@pytest.mark.parametrize("n", [3, 30, 600])
def test_the_fit_is_never_worse_than_temperature_or_identity(how: str, n: int) -> None:
    predictions = synthetic(3, n=n, noise=1.0, seed=n)
    fitted, temperature = fit_vector(predictions, how), fit_temperature(predictions, how)
    assert fitted.nll_after <= temperature.nll_after + 1e-12 <= fitted.nll_before + 2e-12 == temperature.nll_before + 2e-12
    assert fitted.nll_after == pytest.approx(NLL.compute(aggregate(fitted.apply(predictions), how)), rel=1e-9)
    assert (fitted.n, fitted.temperature) == (n, temperature.value)


def test_is_the_minimum_of_the_penalised_nll() -> None:
    predictions = synthetic(2, n=300, noise=1.0)
    fitted, nll, n = fit_vector(predictions, "probs"), nll_and_gradient(predictions, "probs"), 300
    best = np.array([*fitted.weight, *fitted.bias])

    def penalised(theta: np.ndarray) -> float:
        relative = (theta[:4] * fitted.temperature - 1.0) / module.WEIGHT_SCALE
        return nll(theta)[0] + 0.5 * float(relative @ relative + np.square(theta[4:] / module.BIAS_SCALE).sum()) / n

    for direction in np.vstack([np.eye(8), np.random.default_rng(0).normal(size=(8, 8))]):
        for step in (-0.01, 0.01):
            assert penalised(best + step * direction) > penalised(best)


def test_few_samples_stay_near_the_temperature() -> None:
    """Two samples a class say little: a free fit would separate them."""
    few, fresh = synthetic(n=8, seed=3), synthetic(n=4000, seed=4)
    fitted = fit_vector(few, "probs")
    relative = np.array(fitted.weight) * fitted.temperature
    assert np.abs(relative - 1).max() < 0.3 and np.abs(fitted.bias).max() < 0.5
    temperature = NLL.compute(aggregate(fit_temperature(few, "probs").apply(fresh)))
    assert NLL.compute(aggregate(fitted.apply(fresh))) < temperature + 0.05


def test_helps_where_classes_differ_on_fresh_samples() -> None:
    train, fresh = synthetic(n=2000), synthetic(n=4000, seed=7)
    before = NLL.compute(aggregate(fit_temperature(train, "probs").apply(fresh)))
    assert NLL.compute(aggregate(fit_vector(train, "probs").apply(fresh))) < before - 0.02


def test_temperature_is_a_special_case() -> None:
    predictions = synthetic(3, n=50, noise=1.0)
    same = Vector([1 / 1.7] * 4, [0.0] * 4, 1.7, 0, 0.0, 0.0).apply(predictions)
    np.testing.assert_allclose(same.logits_MNC, Temperature(1.7, 0, 0.0, 0.0).apply(predictions).logits_MNC, rtol=1e-14)
    identity = Vector([1.0] * 4, [0.0] * 4, 1.0, 0, 0.0, 0.0).apply(predictions)
    np.testing.assert_array_equal(identity.logits_MNC, predictions.logits_MNC)
    single = replace(predictions, logits_MNC=predictions.logits_MNC.astype(np.float32))
    assert Vector(W.tolist(), B.tolist(), 1.0, 0, 0.0, 0.0).apply(single).logits_MNC.dtype == np.float32


def test_unknown_labels_and_missing_options_are_left_out() -> None:
    predictions = synthetic(2, n=200, noise=1.0)
    partly = replace(predictions, labels_N=np.where(np.arange(200) < 120, predictions.labels_N, -1))
    assert fit_vector(partly, "probs") == fit_vector(predictions.subset(np.arange(120)), "probs")
    wide = np.concatenate([predictions.logits_MNC, np.full((2, 200, 1), np.nan)], axis=2)
    masked = replace(predictions, logits_MNC=wide, classes=list("abcde"), mask_NC=np.tile(np.arange(5) < 4, (200, 1)))
    fitted, plain = fit_vector(masked, "probs"), fit_vector(predictions, "probs")
    assert not options_vary(masked) and (fitted.weight[4], fitted.bias[4]) == (1 / fitted.temperature, 0.0)
    np.testing.assert_allclose(fitted.weight[:4], plain.weight, rtol=1e-4)


def test_refusals() -> None:
    predictions = synthetic(n=10)
    mask_NC = np.arange(4) < np.where(predictions.labels_N == 3, 4, np.arange(10) % 2 + 3)[:, None]
    varying = replace(predictions, mask_NC=mask_NC)
    assert options_vary(varying) and not options_vary(predictions)
    with pytest.raises(SveError, match="the options vary"):
        fit_vector(varying, "probs")
    with pytest.raises(SveError, match="needs labels"):
        fit_vector(replace(predictions, labels_N=np.full(10, -1)), "probs")
    with pytest.raises(SveError, match="Unknown aggregate"):
        fit_vector(predictions, "votes")
    with pytest.raises(SveError, match="fitted on 3 classes, these predictions have 4"):
        Vector([1.0] * 3, [0.0] * 3, 1.0, 0, 0.0, 0.0).apply(predictions)


def test_state_round_trip_and_documents_without_it() -> None:
    state = Posthoc(Temperature(1.25, 10, 0.5, 0.25), fit_vector(synthetic(n=50), "probs"))
    assert Posthoc.from_json(state.to_json()) == state
    old = json.loads(state.to_json())
    del old["vector"]
    assert Posthoc.from_json(json.dumps(old)) == Posthoc(state.temperature)
    with pytest.raises(SveError, match="damaged"):
        Posthoc.from_json(json.dumps({**old, "vector": {"weights": [1.0]}}))
