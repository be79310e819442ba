"""Shot noise: light comes in a whole number of photons."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(pixels_HWK * strength[0]) / strength[0]


shot_noise = ImageCorruption(
    "shot_noise",
    "Shot noise",
    "noise",
    "Replaces every value by a Poisson count of photons; the strength is how many photons white is.",
    small=((500.0,), (250.0,), (100.0,), (75.0,), (50.0,)),
    large=((60.0,), (25.0,), (12.0,), (5.0,), (3.0,)),
    apply=_apply,
)
