"""Made-up systems for the same samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sve_cli.predictions import Predictions

Make = Callable[..., Predictions]


def make_system(
    n: int = 60, members: int = 1, classes: int = 3, skill: float = 1.5, noise: float = 1.0, seed: int = 0, data_seed: int = 0,
    dataset: str = "toy",
) -> Predictions:  # fmt: skip
    """Logits = what the sample shows (the same for all systems of one `data_seed`) + the system's own noise."""
    data, own = np.random.default_rng([data_seed, 1]), np.random.default_rng([seed, data_seed, 2])
    labels = data.integers(classes, size=n)
    shown = data.normal(size=(n, classes))
    shown[np.arange(n), labels] += skill
    logits = (shown + noise * own.normal(size=(members, n, classes))).astype(np.float32)
    return Predictions(logits, labels, [f"{dataset}{i:04d}" for i in range(n)], [f"c{c}" for c in range(classes)], dataset, "test")


def from_probs(probs_NC: np.ndarray, labels: list[int]) -> Predictions:
    """One network that says exactly these probabilities."""
    n, classes = probs_NC.shape
    ids = [f"s{i}" for i in range(n)]
    return Predictions(np.log(probs_NC)[None].astype(np.float32), np.array(labels), ids, [f"c{c}" for c in range(classes)], "hand")


@pytest.fixture
def make() -> Make:
    return make_system


@pytest.fixture
def said() -> Callable[[np.ndarray, list[int]], Predictions]:
    return from_probs
