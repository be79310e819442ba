"""Brightness: more light."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    value = pixels_HWK.max(axis=2, keepdims=True)  # hue and saturation stay while this V of HSV grows
    brighter = np.minimum(value + strength[0], 1.0)
    return np.where(value > 0, pixels_HWK * (brighter / np.where(value > 0, value, 1.0)), brighter)


brightness = ImageCorruption(
    "brightness",
    "Brightness",
    "weather",
    "Adds to the value of hue, saturation and value; the strength is how much, on a scale of 0 to 1.",
    small=((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    large=((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    apply=_apply,
)
