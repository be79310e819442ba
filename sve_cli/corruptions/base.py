"""What a corruption is: a name, a group, one sentence, five strengths, and one function of an input and a generator.

The image corruptions and their strengths are in the manner of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich 2019,
arXiv 1903.12261). They are not those files: other libraries draw them, and other random numbers.
Shapes: H height, W width, K channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
SMALL_SIDE, LARGE_SIDE = 32, 224  # sides of the images that the two tables of strengths were made for, in pixels
SMALL_BELOW = 96  # shorter side from which on the table of large images is used

Strength = tuple[float, ...]
# Pixels (H, W, K), float32 in 0 … 1, a strength, how many pixels one pixel of the table is, a generator -> pixels, clipped later.
ImageFunction = Callable[[np.ndarray, Strength, float, np.random.Generator], np.ndarray]
# A text, the share of it to touch, a generator -> a text.
TextFunction = Callable[[str, float, np.random.Generator], str]


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    Attributes:
        name: registry name.
        title: its name in words.
        group: what `--corruptions` may name instead.
        sentence: what it does, and what the strength is.
    """

    name: str
    title: str
    group: str
    sentence: str

    @property
    def modality(self) -> Literal["image", "text"]:
        """What it corrupts."""
        raise NotImplementedError

    def strengths(self) -> str:
        """The strengths at severities 1 to 5, as text."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageCorruption(Corruption):
    """A corruption of images.

    Attributes:
        small: strengths at severities 1 to 5 for images whose shorter side is below 96 pixels; lengths in pixels at 32.
        large: the same for larger images; lengths in pixels at 224. Lengths grow in proportion to the shorter side, and are those
            at 32 pixels for images smaller than that.
    """

    small: tuple[Strength, ...]
    large: tuple[Strength, ...]
    apply: ImageFunction

    @property
    def modality(self) -> Literal["image", "text"]:
        return "image"

    def strengths(self) -> str:
        tables = [", ".join(_shown(strength) for strength in table) for table in (self.small, self.large)]
        return tables[0] if tables[0] == tables[1] else f"{tables[0]} (from {SMALL_BELOW} pixels on: {tables[1]})"

    def corrupted(self, pixels_HWK: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
        """A corrupted copy of an image, uint8 (H, W, K) as the original.

        Args:
            severity: 1 to 5.
        """
        side = min(pixels_HWK.shape[:2])
        table, made_for = (self.small, SMALL_SIDE) if side < SMALL_BELOW else (self.large, LARGE_SIDE)
        scale = side / made_for if side >= SMALL_SIDE else 1.0
        changed = self.apply(pixels_HWK.astype(np.float32) / np.float32(255), table[severity - 1], scale, rng)
        return np.asarray(np.clip(changed * 255.0, 0.0, 255.0).round().astype(np.uint8))


@dataclass(frozen=True)
class TextCorruption(Corruption):
    """A corruption of texts. `shares`: which share of the letters or words it touches at severities 1 to 5."""

    shares: tuple[float, ...]
    apply: TextFunction

    @property
    def modality(self) -> Literal["image", "text"]:
        return "text"

    def strengths(self) -> str:
        return ", ".join(f"{100 * share:.4g} %" for share in self.shares)

    def corrupted(self, text: str, severity: int, rng: np.random.Generator) -> str:
        """A corrupted copy of a text; a text with something in it never becomes empty.

        Args:
            severity: 1 to 5.
        """
        return self.apply(text, self.shares[severity - 1], rng)


def keyed_rng(seed: int, *key: object) -> np.random.Generator:
    """A generator for one input: draws depend on what is corrupted and how, never on the order or the batch."""
    digest = hashlib.sha256(repr((seed, *key)).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _shown(strength: Strength) -> str:
    return f"{strength[0]:g}" if len(strength) == 1 else f"({', '.join(f'{value:g}' for value in strength)})"
