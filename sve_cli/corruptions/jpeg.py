"""JPEG: compressed, and read again."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sve_cli.corruptions.base import ImageCorruption, Strength


def _apply(pixels_HWK: np.ndarray, strength: Strength, scale: float, rng: np.random.Generator) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray((pixels_HWK * 255.0).round().astype(np.uint8)).save(stored, "JPEG", quality=int(strength[0]))
    with Image.open(stored) as image:
        return np.asarray(image.convert("RGB")) / 255.0


jpeg = ImageCorruption(
    "jpeg",
    "JPEG compression",
    "digital",
    "Compresses the image as JPEG; the strength is Pillow's quality.",
    small=((80.0,), (65.0,), (58.0,), (50.0,), (40.0,)),
    large=((25.0,), (18.0,), (15.0,), (10.0,), (7.0,)),
    apply=_apply,
)
