"""Fog: a bright cloud over the image, thicker in some places than in others."""

from __future__ import annotations

import math

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength


def cloud(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Random heights (H, W) in 0 … 1, whose details shrink by `decay` each time they are half as long.

    The diamond-square clouds of arXiv 1903.12261 have the same spectrum; this one is drawn by its Fourier series.
    """
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # the mean is taken out below
    waves = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * frequency ** -(1.0 + math.log2(decay))
    heights = np.fft.irfft2(waves, s=shape)
    low, high = float(heights.min()), float(heights.max())
    return np.asarray((heights - low) / (high - low)) if high > low else np.ones(shape)


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    thickness, decay = strength
    brightest = max(float(pixels_HWK.max()), 1e-3)
    height, width = pixels_HWK.shape[:2]
    covered = pixels_HWK + thickness * cloud((height, width), decay, rng)[:, :, None]
    return np.asarray(covered * brightest / (brightest + thickness))


fog = ImageCorruption(
    "fog",
    "Fog",
    "weather",
    "Lays a random cloud over the image; the strength is its thickness and how fast its details shrink.",
    small=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    large=((0.8, 2.0), (1.2, 2.0), (1.7, 2.0), (2.3, 2.0), (3.0, 2.0)),
    apply=_apply,
)
