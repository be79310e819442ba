"""Words left out."""

from __future__ import annotations

import re

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import WORD_SHARES, drawn


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    words = re.findall(r"\S+\s*", text)
    gone = drawn(list(range(len(words))), share, rng, keep=1)
    return "".join(word for i, word in enumerate(words) if i not in gone).rstrip() if gone else text


drop_words = TextCorruption(
    "drop_words",
    "Dropped words",
    "drops",
    "Leaves words out, never all of them (words are what spaces separate); the strength is the share of the words left out.",
    WORD_SHARES,
    _apply,
)
