"""Contrast: everything drawn toward the mean."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    mean_K = pixels_HWK.mean(axis=(0, 1), keepdims=True)
    return np.asarray((pixels_HWK - mean_K) * strength[0] + mean_K)


contrast = ImageCorruption(
    "contrast",
    "Low contrast",
    "digital",
    "Draws every channel toward its mean; the strength is the share of the contrast that is left.",
    small=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    large=((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    apply=_apply,
)
