"""Gaussian noise, as of a sensor in low light."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    return pixels_HWK + np.float32(strength[0]) * rng.standard_normal(pixels_HWK.shape, dtype=np.float32)


gaussian_noise = ImageCorruption(
    "gaussian_noise",
    "Gaussian noise",
    "noise",
    "Adds independent normal noise to every channel of every pixel; the strength is its standard deviation on a scale of 0 to 1.",
    small=((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    large=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    apply=_apply,
)
