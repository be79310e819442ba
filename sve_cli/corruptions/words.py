"""What the text corruptions share: how many letters or words to touch, and which."""

from __future__ import annotations

import math

import numpy as np

LETTER_SHARES = (0.05, 0.10, 0.15, 0.20, 0.30)
WORD_SHARES = (0.10, 0.20, 0.30, 0.40, 0.50)


def letters(text: str) -> list[int]:
    """Where letters stand (of any script); digits, signs and spaces are none."""
    return [i for i, character in enumerate(text) if character.isalpha()]


def whole_number(expected: float, rng: np.random.Generator) -> int:
    """The number below or above `expected`, so that `expected` is its mean: short texts have their share too."""
    below = math.floor(expected)
    return below + int(rng.random() < expected - below)


def drawn(places: list[int], share: float, rng: np.random.Generator, keep: int = 0) -> set[int]:
    """A share of the places, without replacement; at least `keep` of them stay."""
    count = min(whole_number(share * len(places), rng), max(len(places) - keep, 0))
    return {places[i] for i in rng.permutation(len(places))[:count]}
