"""Small letters and capitals mixed up."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import drawn, letters


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    turned = drawn(letters(text), share, rng)
    return "".join(character.swapcase() if i in turned else character for i, character in enumerate(text))


random_case = TextCorruption(
    "random_case",
    "Random case",
    "case",
    "Turns small letters into capitals and capitals into small letters; the strength is the share of the letters turned.",
    (0.1, 0.2, 0.3, 0.4, 0.5),
    _apply,
)
