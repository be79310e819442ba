"""Typing errors: two letters that stand side by side change places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sve_cli.corruptions.base import TextCorruption
from sve_cli.corruptions.words import LETTER_SHARES, letters, whole_number


def _apply(text: str, share: float, rng: np.random.Generator) -> str:
    places = letters(text)
    pairs = [i for i, j in pairwise(places) if j == i + 1 and text[i] != text[j]]
    left = whole_number(share * len(places) / 2, rng)  # a pair is two letters
    characters, touched = list(text), set[int]()
    for k in rng.permutation(len(pairs)):
        i = pairs[k]
        if left and not touched & {i, i + 1}:
            characters[i], characters[i + 1] = characters[i + 1], characters[i]
            touched |= {i, i + 1}
            left -= 1
    return "".join(characters)


swap_letters = TextCorruption(
    "swap_letters",
    "Swapped letters",
    "typos",
    "Swaps neighbouring letters inside words, no letter twice; the strength is the share of the letters that move.",
    LETTER_SHARES,
    _apply,
)
