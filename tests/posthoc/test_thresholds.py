from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import binom

from sve_cli.errors import SveError
from sve_cli.posthoc.conformal import class_scores, fit_conformal
from sve_cli.posthoc.state import Posthoc
from sve_cli.posthoc.thresholds import clopper_pearson_upper, fit_abstention, fit_ood_threshold, quantile_rank


def test_clopper_pearson_by_its_definition() -> None:
    """At the upper bound, as few errors as were seen have probability 1 - level."""
    for errors, n in ((0, 59), (3, 100), (40, 41)):
        bound = clopper_pearson_upper(errors, n, 0.95)
        assert binom.cdf(errors, n, bound) == pytest.approx(0.05, rel=1e-6)
    assert clopper_pearson_upper(5, 5, 0.95) == 1.0
    assert clopper_pearson_upper(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))


def test_abstains_on_the_uncertain_half() -> None:
    """1,000 samples, wrong only below a confidence of 0.5: half is answered, or a step more if the bound allows it."""
    confidence = np.linspace(0.0, 1.0, 1000)
    rule = fit_abstention(confidence, (confidence > 0.5).astype(float), 0.05)
    assert rule.threshold is not None and 0.45 <= rule.threshold <= 0.51 and rule.n == 1000
    assert rule.answered == int((confidence >= rule.threshold).sum()) and rule.bound <= 0.05
    assert rule.answers(np.array([rule.threshold, rule.threshold - 1e-9])).tolist() == [True, False]
    assert "95 % confidence" in rule.guarantee and "exchangeable" in rule.assumption


def test_too_few_samples_promise_nothing() -> None:
    rule = fit_abstention(np.linspace(0.5, 1, 24), np.ones(24), 0.05)
    assert rule.threshold is None and rule.answers(np.array([0.01])).all() and rule.guarantee.startswith("None: with 24")
    flag = fit_ood_threshold(np.arange(18.0), "entropy", 0.95)
    assert flag.threshold is None and not flag.flags(np.array([1e9])).any() and "too few" in flag.guarantee
    sets = fit_conformal(np.full((8, 2), 0.5), np.zeros(8, dtype=np.int64), "lac", 0.1)
    assert sets.threshold is None and sets.sets(np.array([[0.999, 0.001]]), np.array([[True, True]])).all()
    with pytest.raises(SveError, match="labelled calibration samples"):
        fit_abstention(np.zeros(0), np.zeros(0), 0.05)


def test_abstention_holds_its_target_in_simulation() -> None:
    """P(error | confidence c) = 1 - c: the true risk among the answered exceeds the target in at most 5 % of 400 draws."""
    rng = np.random.default_rng(0)
    confidence = rng.beta(5, 1, size=(400, 500))
    correct = (rng.random(confidence.shape) < confidence).astype(float)
    grid = np.sort(rng.beta(5, 1, size=200_000))
    risk_above = 1 - np.cumsum(grid[::-1])[::-1] / np.arange(len(grid), 0, -1)
    fitted = [fit_abstention(c, y, 0.1) for c, y in zip(confidence, correct, strict=True)]
    used = [rule.threshold for rule in fitted if rule.threshold is not None]
    assert len(used) > 300, "the rule finds something"
    broken = sum(risk_above[np.searchsorted(grid, t)] > 0.1 for t in used)
    assert broken <= 0.05 * 400


@pytest.mark.parametrize("n", [50, 333])
def test_ood_threshold_keeps_its_share_in_simulation(n: int) -> None:
    """The mean kept share over draws is ceil((n + 1) 0.95) / (n + 1), which is at least 95 %."""
    rng = np.random.default_rng(n)
    thresholds = [fit_ood_threshold(rng.random(n), "entropy", 0.95).threshold for _ in range(2000)]
    kept = float(np.mean([t for t in thresholds if t is not None]))  # uniform scores: the share below t is t
    assert kept == pytest.approx(quantile_rank(n, 0.05) / (n + 1), abs=0.003) and kept > 0.947


def test_ranks_are_whole() -> None:
    """0.95 · 100 = 95 and 0.9 · 10 = 9 whatever the rounding."""
    assert (quantile_rank(99, 0.05), quantile_rank(9, 0.1), quantile_rank(19, 0.05)) == (95, 9, 19)


PROBS = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])


def test_class_scores_by_hand() -> None:
    np.testing.assert_allclose(class_scores(PROBS, "lac"), [[0.4, 0.7, 0.9], [0.8, 0.8, 0.4]])
    np.testing.assert_allclose(class_scores(PROBS, "aps"), [[0.6, 0.9, 1.0], [0.8, 1.0, 0.6]])
    with pytest.raises(SveError, match="Unknown kind"):
        class_scores(PROBS, "x")


def test_sets_by_hand() -> None:
    """Nine labels with probability 0.1 … 0.9, alpha 0.2: the 8th smallest of 1 - p is 0.8, so p >= 0.2 is in the set."""
    p = np.linspace(0.1, 0.9, 9)
    rule = fit_conformal(np.stack([p, 1 - p], axis=1), np.zeros(9, dtype=np.int64), "lac", 0.2)
    assert rule.threshold == pytest.approx(0.8)
    everything = np.ones((1, 3), dtype=bool)
    assert rule.sets(np.array([[0.7, 0.21, 0.09]]), everything).tolist() == [[True, True, False]]
    assert rule.sets(np.array([[0.7, 0.21, 0.09]]), np.array([[True, False, True]])).tolist() == [[True, False, False]]


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_coverage_in_simulation(kind: str, alpha: float) -> None:
    """Mean coverage over 300 calibration draws of 60, with probabilities that are wrong: still at least 1 - alpha."""
    rng = np.random.default_rng(3)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        true = rng.dirichlet(np.full(5, 0.6), size=n)
        labels = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=4)
        stated = true**2.5 + 1e-6  # overconfident
        return stated / stated.sum(axis=1, keepdims=True), labels

    probs, labels = draw(20_000)
    exists = np.ones_like(probs, dtype=bool)
    hits = [fit_conformal(*draw(60), kind, alpha).sets(probs, exists)[np.arange(len(labels)), labels].mean() for _ in range(300)]
    assert 1 - alpha - 0.01 < np.mean(hits) < 1 - alpha + 0.06


def test_stored_and_read_again() -> None:
    state = Posthoc(
        abstention=fit_abstention(np.linspace(0, 1, 200), np.ones(200), 0.05),
        ood_threshold=fit_ood_threshold(np.random.default_rng(0).random(40), "entropy", 0.95),
        conformal=fit_conformal(np.tile(PROBS, (20, 1)), np.tile([0, 2], 20), "aps", 0.1),
    )
    assert Posthoc.from_json(state.to_json()) == state
    old = {key: value for key, value in asdict(state).items() if key in ("temperature", "vector")}
    assert Posthoc.from_json(json.dumps({"schema": "sve-posthoc/1", **old})) == Posthoc()
