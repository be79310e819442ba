from __future__ import annotations

import math

import numpy as np
import pytest

from sve_cli.predictions import Predictions
from sve_cli.registry import OOD_SCORES

# Two members, one sample, logits whose exponentials are (3, 1) and (1, 1): p = (.75, .25) and (.5, .5), mean (.625, .375).
LOGITS = np.array([[[math.log(3), 0.0]], [[0.0, 0.0]]])
OF_SEVERAL = ("mutual_information", "variation_ratio", "energy_of_mean")  # 0 for one member, whatever it says


def entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


HAND = {
    "max_probability": 0.375,
    "entropy": entropy(0.625),
    "expected_entropy": (entropy(0.75) + math.log(2)) / 2,
    "mutual_information": entropy(0.625) - (entropy(0.75) + math.log(2)) / 2,
    "energy": -(math.log(4) + math.log(2)) / 2,
    "max_logit": -math.log(3) / 2,
    "variation_ratio": 0.0,  # both members name the first class (the first of equals)
    "energy_of_mean": -math.log(math.sqrt(0.75 * 0.5) + math.sqrt(0.25 * 0.5)),
    "max_logit_of_mean": -math.log(3) / 2,
}


@pytest.mark.parametrize("name", list(HAND))
def test_by_hand(name: str) -> None:
    score = OOD_SCORES.resolve(name)()
    assert score.name == name and score.definition.endswith(".")
    values = score.score(Predictions(LOGITS, np.array([-1]), ["a"], ["x", "y"]), "probs")
    assert values.shape == (1,) and values[0] == pytest.approx(HAND[name])


@pytest.mark.parametrize("name", list(HAND))
def test_missing_options_play_no_part(name: str) -> None:
    """A third option that does not exist, with a huge logit, changes nothing."""
    logits = np.concatenate([LOGITS, np.full((2, 1, 1), 50.0)], axis=2)
    mask = np.array([[True, True, False]])
    values = OOD_SCORES.resolve(name)().score(Predictions(logits, np.array([-1]), ["a"], list("xyz"), mask_NC=mask))
    assert values[0] == pytest.approx(HAND[name])


@pytest.mark.parametrize("name", list(HAND))
def test_higher_means_less_certain(name: str) -> None:
    """One member sure, and twice unsure; the mutual information of one member is exactly 0."""
    logits = np.array([[[9.0, 0.0, 0.0], [0.2, 0.1, 0.0]]], dtype=np.float32)
    sure, unsure = OOD_SCORES.resolve(name)().score(Predictions(logits, np.array([-1, -1]), ["a", "b"], list("xyz")))
    assert (sure == unsure == 0.0) if name in OF_SEVERAL else sure < unsure


def test_every_score_is_tested() -> None:
    assert {*HAND, "mahalanobis", "knn"} == set(OOD_SCORES)


def test_members_that_agree_tie_exactly() -> None:
    logits_NC = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    same = Predictions(np.stack([logits_NC] * 5), np.zeros(50, np.int64), [str(i) for i in range(50)], list("abcdefg"))
    for name in ("energy_of_mean", "mutual_information"):
        assert OOD_SCORES.resolve(name)().score(same).tolist() == [0.0] * 50, name


def test_log_probabilities_have_no_energy() -> None:
    """What other tools store as probabilities: rounding must not rank samples."""
    rng = np.random.default_rng(0)
    logits_MNC = rng.normal(size=(2, 500, 7)).astype(np.float32)
    logs_MNC = np.log(np.exp(logits_MNC) / np.exp(logits_MNC).sum(axis=2, keepdims=True)).astype(np.float32)
    ids = [str(i) for i in range(500)]
    given, logs = (Predictions(x, np.zeros(500, dtype=np.int64), ids, list("abcdefg")) for x in (logits_MNC, logs_MNC))
    score = OOD_SCORES.resolve("energy")()
    assert (score.score(logs) == 0.0).all() and len(np.unique(score.score(given))) == 500


def test_members_that_vote_apart() -> None:
    """Votes a, a, b and a, b, c; the mean logit's maximum is not the mean of the maxima."""
    logits = np.zeros((3, 2, 3))
    for member, (first, second) in enumerate([(0, 0), (0, 1), (1, 2)]):
        logits[member, 0, first] = logits[member, 1, second] = 3.0
    split = Predictions(logits, np.array([-1, -1]), ["a", "b"], list("xyz"))
    score = {name: OOD_SCORES.resolve(name)().score(split) for name in ("variation_ratio", "max_logit", "max_logit_of_mean")}
    np.testing.assert_allclose(score["variation_ratio"], [1 / 3, 2 / 3])
    np.testing.assert_allclose(score["max_logit"], [-3, -3])
    np.testing.assert_allclose(score["max_logit_of_mean"], [-2, -1])
