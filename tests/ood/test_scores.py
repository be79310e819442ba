from __future__ import annotations

import math

import numpy as np
import pytest

from sve_cli.predictions import Predictions
from sve_cli.registry import OOD_SCORES

# Two members, one sample, logits whose exponentials are (3, 1) and (1, 1): p = (.75, .25) and (.5, .5), mean (.625, .375).
LOGITS = np.array([[[math.log(3), 0.0]], [[0.0, 0.0]]])


def entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


HAND = {
    "max_probability": 0.375,
    "entropy": entropy(0.625),
    "expected_entropy": (entropy(0.75) + math.log(2)) / 2,
    "mutual_information": entropy(0.625) - (entropy(0.75) + math.log(2)) / 2,
    "energy": -(math.log(4) + math.log(2)) / 2,
    "max_logit": -math.log(3) / 2,
}


@pytest.mark.parametrize("name", list(OOD_SCORES))
def test_by_hand(name: str) -> None:
    score = OOD_SCORES.resolve(name)()
    assert score.name == name and score.definition.endswith(".")
    values = score.score(Predictions(LOGITS, np.array([-1]), ["a"], ["x", "y"]), "probs")
    assert values.shape == (1,) and values[0] == pytest.approx(HAND[name])


@pytest.mark.parametrize("name", list(OOD_SCORES))
def test_missing_options_play_no_part(name: str) -> None:
    """A third option that does not exist, with a huge logit, changes nothing."""
    logits = np.concatenate([LOGITS, np.full((2, 1, 1), 50.0)], axis=2)
    mask = np.array([[True, True, False]])
    values = OOD_SCORES.resolve(name)().score(Predictions(logits, np.array([-1]), ["a"], list("xyz"), mask_NC=mask))
    assert values[0] == pytest.approx(HAND[name])


@pytest.mark.parametrize("name", list(OOD_SCORES))
def test_higher_means_less_certain(name: str) -> None:
    """One member sure, and twice unsure; the mutual information of one member is exactly 0."""
    logits = np.array([[[9.0, 0.0, 0.0], [0.2, 0.1, 0.0]]], dtype=np.float32)
    sure, unsure = OOD_SCORES.resolve(name)().score(Predictions(logits, np.array([-1, -1]), ["a", "b"], list("xyz")))
    assert (sure == unsure == 0.0) if name == "mutual_information" else sure < unsure
