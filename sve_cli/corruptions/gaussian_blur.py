"""Gaussian blur."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(gaussian_filter(pixels_HWK, strength[0] * scale, axes=(0, 1), mode="nearest"))


gaussian_blur = ImageCorruption(
    "gaussian_blur",
    "Gaussian blur",
    "blur",
    "Blurs with a Gaussian; the strength is its standard deviation in pixels.",
    small=((0.4,), (0.6,), (0.7,), (0.8,), (1.0,)),
    large=((1.0,), (2.0,), (3.0,), (4.0,), (6.0,)),
    apply=_apply,
)
