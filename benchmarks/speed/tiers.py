"""How much is measured: tiny (a test), short (minutes), long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from benchmarks.speed.clock import Clock

Tier = Literal["tiny", "short", "long"]
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What every row is told.

    Attributes:
        tier: which sizes.
        store: folder of the factors, kept from row to row so that nothing is decomposed twice.
        repeats: most turns of a row.
        seconds: about how long a row's turns may take; two turns are always taken.
        clock: wall, or cpu (see `clock_for`).
    """

    tier: Tier
    store: Path
    repeats: int
    seconds: float
    clock: Clock = "wall"

    def pick(self, tiny: T, short: T, long: T) -> T:
        """The value of this tier."""
        return {"tiny": tiny, "short": short, "long": long}[self.tier]


def context_of(tier: Tier, store: Path, clock: Clock = "wall") -> Context:
    """The usual turns and seconds of a tier."""
    repeats, seconds = {"tiny": (2, 2.0), "short": (9, 7.0), "long": (15, 300.0)}[tier]
    return Context(tier, store, repeats, seconds, clock)
