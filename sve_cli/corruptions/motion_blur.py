"""Motion blur: the camera moved."""

from __future__ import annotations

import math

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength
from sve_cli.corruptions.kernels import convolved, streak


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    radius, spread = strength
    return convolved(pixels_HWK, streak(radius * scale, spread * scale, math.radians(rng.uniform(-45.0, 45.0))))


motion_blur = ImageCorruption(
    "motion_blur",
    "Motion blur",
    "blur",
    "Blurs along a line near the horizontal; the strength is half the length of the streak and its spread, in pixels.",
    small=((6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.5), (9.0, 3.0)),
    large=((10.0, 3.0), (15.0, 5.0), (15.0, 8.0), (15.0, 12.0), (20.0, 15.0)),
    apply=_apply,
)
