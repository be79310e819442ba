"""Snow: bright streaks over a whitened image."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import zoom

from sve_cli.corruptions.base import ImageCorruption, Strength
from sve_cli.corruptions.kernels import convolved, streak

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: how bright a colour is


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    mean, spread, flake, least, radius, blur, kept = strength
    size = pixels_HWK.shape[:2]
    coarse = tuple(max(math.ceil(side / (flake * scale)), 1) for side in size)
    drawn = rng.normal(mean, spread, coarse)
    layer = zoom(drawn, [side / small for side, small in zip(size, coarse, strict=True)], order=1, grid_mode=True, mode="nearest")
    flakes = np.clip(np.where(layer < least, 0.0, layer), 0.0, 1.0)[:, :, None]
    fallen = convolved(flakes, streak(radius * scale, blur * scale, math.radians(rng.uniform(45.0, 135.0))))
    grey = (pixels_HWK[:, :, :3] @ LUMA)[:, :, None]
    white = kept * pixels_HWK + (1.0 - kept) * np.maximum(pixels_HWK, grey * 1.5 + 0.5)
    return np.asarray(white + fallen + np.rot90(fallen, k=2))


snow = ImageCorruption(
    "snow",
    "Snow",
    "weather",
    "Whitens the image and adds falling flakes; the strength is mean and spread of the flakes' brightness, their size in pixels, "
    "the brightness below which there is none, half the length and the spread of their streaks in pixels, and how much of the "
    "image is kept.",
    small=(
        (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
    ),
    large=(
        (0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55),
    ),
    apply=_apply,
)
