"""Defocus: every point becomes a disk."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength
from sve_cli.corruptions.kernels import convolved, disk


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    radius, soft = strength
    return convolved(pixels_HWK, disk(radius * scale, soft * scale))


defocus_blur = ImageCorruption(
    "defocus_blur",
    "Defocus",
    "blur",
    "Blurs with a disk; the strength is its radius and the softness of its edge, in pixels.",
    small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.5), (1.5, 0.4)),
    large=((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    apply=_apply,
)
