"""Typing errors: the key beside the right one."""

from __future__ import annotations

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import LETTER_SHARES, drawn

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def neighbours() -> dict[str, str]:
    """The letters beside, above and below each letter of a US keyboard, whose rows are half a key apart."""
    place = {letter: (row, column + 0.5 * row) for row, keys in enumerate(ROWS) for column, letter in enumerate(keys)}
    return {
        a: "".join(b for b, (row, column) in place.items() if b != a and abs(row - y) <= 1 and abs(column - x) <= 1)
        for a, (y, x) in place.items()
    }


NEIGHBOURS = neighbours()


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    characters = list(text)
    places = [i for i, character in enumerate(text) if character.lower() in NEIGHBOURS]
    for i in sorted(drawn(places, share, rng)):
        near = NEIGHBOURS[text[i].lower()]
        key = near[int(rng.integers(len(near)))]
        characters[i] = key.upper() if text[i].isupper() else key
    return "".join(characters)


keyboard = TextCorruption(
    "keyboard",
    "Neighbouring keys",
    "typos",
    "Replaces letters by neighbours on a US keyboard (a to z only); the strength is the share of the letters replaced.",
    LETTER_SHARES,
    _apply,
)
