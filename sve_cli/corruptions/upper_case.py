"""Words in capitals."""

from __future__ import annotations

import re

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import drawn


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    pieces = re.split(r"(\s+)", text)
    shouted = drawn([i for i, piece in enumerate(pieces) if piece.strip()], share, rng)
    return "".join(piece.upper() if i in shouted else piece for i, piece in enumerate(pieces))


upper_case = TextCorruption(
    "upper_case",
    "Upper case",
    "case",
    "Writes words in capitals; the strength is the share of the words written so.",
    (0.2, 0.4, 0.6, 0.8, 1.0),
    _apply,
)
