"""Made-up predictions of a ten-class network and of its retraining."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sve_cli.predictions import Predictions

Make = Callable[..., Predictions]


@pytest.fixture
def make() -> Make:
    """`make(n, scale, seed)`: the same samples each time, noise by seed, logits times scale."""

    def made(n: int = 600, scale: float = 1.0, seed: int = 1, noise: float = 0.5, shift: float = 0.0) -> Predictions:
        rng = np.random.default_rng(0)
        labels_N = rng.integers(10, size=n)
        logits_NC = rng.normal(size=(n, 10))
        logits_NC[np.arange(n), labels_N] += 3.0 - shift
        logits_NC = (logits_NC + noise * np.random.default_rng(seed).normal(size=logits_NC.shape)) * scale
        ids = [f"image-{i}" for i in range(n)]
        return Predictions(logits_NC[None].astype(np.float32), labels_N, ids, [f"c{c}" for c in range(10)], "made", "test")

    return made


@pytest.fixture
def saved(tmp_path: Path, make: Make) -> Callable[..., Path]:
    """The stem of saved made-up predictions."""

    def save(name: str, **how: float) -> Path:
        make(**how).save(tmp_path / name)
        return tmp_path / name

    return save
