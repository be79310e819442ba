"""Pixelation: enlarged from fewer pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray((pixels_HWK * 255.0).round().astype(np.uint8))
    width, height = (max(int(side * strength[0]), 1) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)) / 255.0


pixelate = ImageCorruption(
    "pixelate",
    "Pixelation",
    "digital",
    "Reduces the image and enlarges it again without smoothing; the strength is the share of its sides in between.",
    small=((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    large=((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    apply=_apply,
)
