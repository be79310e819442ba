from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from sve_cli.decisions import decide
from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.ood.build import build_scores
from sve_cli.posthoc.state import Posthoc
from sve_cli.posthoc.temperature import fit_temperature
from sve_cli.posthoc.vector import nll_and_gradient
from sve_cli.posthoc.weights import PRIOR, fit_weights
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.scoring import score
from sve_cli.statistics import ensemble_uncertainty, log_softmax, member_weights, weighted_aggregate


def made(noise: tuple[float, ...], n: int = 600, classes: int = 4, seed: int = 0) -> Predictions:
    """Members whose logits hold different amounts of noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    signal = 2.5 * np.eye(classes)[labels]
    logits = np.stack([signal + s * rng.normal(size=(n, classes)) for s in noise]).astype(np.float32)
    return Predictions(logits, labels, [str(i) for i in range(n)], [str(c) for c in range(classes)], "toy", "test")


def test_it_is_the_optimum_that_another_optimiser_finds() -> None:
    test = made((0.8, 1.5, 3.0))
    log_label_MN = np.stack([log_softmax(z)[np.arange(600), test.labels_N] for z in test.logits_MNC])

    def objective(theta: np.ndarray) -> float:
        w = np.exp(theta - np.logaddexp.reduce(theta))
        return float(-np.log(w @ np.exp(log_label_MN)).sum() - PRIOR / 3 * np.log(w).sum())

    best = minimize(objective, np.zeros(3), tol=1e-12).x
    fitted = fit_weights(test)
    assert fitted.values == pytest.approx(np.exp(best - np.logaddexp.reduce(best)).tolist(), abs=1e-4)
    assert sum(fitted.values) == pytest.approx(1.0) and fitted.values[0] > fitted.values[1] > fitted.values[2] > 0
    assert fitted.nll_after < fitted.nll_before and fitted.n == 600 and fitted.prior == PRIOR
    strong = fit_weights(test, prior=1e6)
    assert strong.values == pytest.approx([1 / 3] * 3, abs=1e-3), "a strong prior leaves them equal"


def test_exchangeable_members_are_the_plain_mean() -> None:
    test = made((1.5, 1.5, 1.5, 1.5), n=4000)
    fitted = fit_weights(test)
    assert fitted.values == pytest.approx([0.25] * 4, abs=0.04)
    plain, weighted = aggregate(test), aggregate(test, fitted.aggregate)
    assert abs(plain.log_label_N.mean() - weighted.log_label_N.mean()) < 1e-3
    equal = aggregate(test, weighted_aggregate([0.25] * 4))
    np.testing.assert_allclose(equal.log_probs_NC, plain.log_probs_NC, atol=1e-12)
    np.testing.assert_allclose(equal.mutual_information_N, plain.mutual_information_N, atol=1e-12)


def test_every_number_uses_them() -> None:
    test, w = made((0.8, 3.0)), np.array([0.7, 0.3])
    how = weighted_aggregate(w.tolist())
    probs = np.exp(np.stack([log_softmax(z) for z in test.logits_MNC]))
    mean = np.tensordot(w, probs, axes=1)
    view = aggregate(test, how)
    np.testing.assert_allclose(view.probs_NC, mean, atol=1e-12)
    found = ensemble_uncertainty(test.logits_MNC, None, how)
    entropies = -(probs * np.log(probs)).sum(axis=2)
    np.testing.assert_allclose(found.expected_N, w @ entropies, atol=1e-12)
    np.testing.assert_allclose(found.total_N, found.expected_N + found.mutual_N, atol=1e-9)
    for name, expected in (("max_probability", 1 - mean.max(axis=1)), ("entropy", -(mean * np.log(mean)).sum(axis=1))):
        np.testing.assert_allclose(build_scores([name])[0].score(test, how), expected, atol=1e-12)
    np.testing.assert_allclose(decide(test, Posthoc(), how).view.probs_NC, mean, atol=1e-12)
    nll = -np.log(mean[np.arange(600), test.labels_N]).mean()
    rows = score(test, replace(EvaluateSpec(bootstrap=0), aggregate=how), temperature=None)  # type: ignore[arg-type]
    assert rows[0].metrics["nll"].value == pytest.approx(nll) and "weights 0.70, 0.30" in rows[0].title
    assert rows[1].metrics["nll"].value == pytest.approx(-np.log(probs[0][np.arange(600), test.labels_N]).mean()), "a member alone"
    assert fit_temperature(test, how).nll_before == pytest.approx(nll)
    assert nll_and_gradient(test, how)(np.repeat([1.0, 0.0], 4))[0] == pytest.approx(nll)


def test_one_member_has_the_weight_one() -> None:
    test = made((1.0,))
    fitted = fit_weights(test)
    assert fitted.values == [1.0] and fitted.nll_before == fitted.nll_after
    np.testing.assert_array_equal(aggregate(test, fitted.aggregate).log_probs_NC, aggregate(test).log_probs_NC)


def test_masks_and_missing_labels() -> None:
    test = made((0.8, 2.0))
    mask = np.ones((600, 4), dtype=bool)
    mask[:, 3] = test.labels_N == 3
    labels = np.where(np.arange(600) < 500, test.labels_N, -1)
    masked = replace(test, mask_NC=mask, labels_N=labels)
    assert fit_weights(masked).n == 500
    garbage = test.logits_MNC.copy()
    garbage[:, ~mask] = np.nan
    assert fit_weights(replace(masked, logits_MNC=garbage)) == fit_weights(masked), "what does not exist is not read"
    with pytest.raises(SveError, match="need labels"):
        fit_weights(replace(test, labels_N=np.full(600, -1)))


def test_stored_and_refused() -> None:
    fitted = fit_weights(made((0.8, 2.0)))
    state = Posthoc(weights=fitted)
    again = Posthoc.from_json(state.to_json())
    assert again == state and again.how("weighted") == fitted.aggregate and Posthoc().how("logits") == "logits"
    weights = member_weights(fitted.aggregate, 2)
    assert weights is not None and weights.tolist() == fitted.values, "to the last bit through text"
    with pytest.raises(SveError, match="weights for 2 members"):
        aggregate(made((1.0, 1.0, 1.0)), fitted.aggregate)
    with pytest.raises(SveError, match="not fitted"):
        aggregate(made((1.0, 1.0)), "weighted")
