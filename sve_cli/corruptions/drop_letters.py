"""Letters left out."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import LETTER_SHARES, drawn, letters


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    gone = drawn(letters(text), share, rng, keep=1)
    return "".join(character for i, character in enumerate(text) if i not in gone)


drop_letters = TextCorruption(
    "drop_letters",
    "Dropped letters",
    "drops",
    "Leaves letters out, never all of them; the strength is the share of the letters left out.",
    LETTER_SHARES,
    _apply,
)
