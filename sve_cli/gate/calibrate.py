"""How much a metric moves between evaluations of the same thing, and the slack that follows.

Shapes: K evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np

from sve_cli.errors import SveError
from sve_cli.gate.rule import ROUNDING
from sve_cli.gate.spec import GateSpec
from sve_cli.report import Direction, MetricValue

ENOUGH = 5  # evaluations: with fewer the sentence says that they are few
DIGITS = 2  # of a learned slack, rounded up


@dataclass(frozen=True)
class Learned:
    """What repeated evaluations say of one metric. All numbers are plain (0.01, not 1 %).

    Attributes:
        key: report address.
        values: of the evaluations, in their order.
        pairs: how many pairs of evaluations there are.
        usual, largest: median and maximum of the pairs' worsening; each pair counts in the order in which it is a worsening.
        slack: what is allowed from now on; `before`: what the gate file allowed, None without.
    """

    key: str
    direction: Direction
    values: list[float]
    pairs: int
    usual: float
    largest: float
    slack: float
    before: float | None = None


def learn(
    key: str,
    direction: Direction,
    values: Sequence[float],
    quantile: float = 1.0,
    before: float | None = None,
    parts: Sequence[Sequence[float]] = (),
) -> Learned:
    """The slack of one metric: the given quantile (1: the largest) of the pairwise worsening, rounded up to two digits.

    Args:
        parts: the values of each evaluation in several places, where the gate judges each of them and `values` are the worst: a
            pair's worsening is then the largest of the places'.

    Raises:
        SveError: fewer than two values, one that is not finite, a quantile outside 0 to 1, or a metric without a better side.
    """
    if len(values) < 2:
        raise SveError("One evaluation has nothing to differ from.", "Name two or more, or use --batch-sizes with a run.")
    if not 0.0 < quantile <= 1.0:
        raise SveError(f"The quantile lies above 0 and at most at 1, it is not {quantile:g}.", "1 takes the largest worsening.")
    if direction == "none":
        raise SveError(f"'{key}' has no better side, so it cannot get a slack.", "Name other metrics.")
    rows = list(parts) or [[value] for value in values]
    if not all(math.isfinite(value) for row in rows for value in row):
        raise SveError(f"'{key}' is not a finite number in every evaluation.", "Name other metrics.")
    gaps = [max(abs(x - y) for x, y in zip(one, other, strict=True)) for one, other in combinations(rows, 2)]
    chosen = float(np.quantile(gaps, quantile, method="higher"))
    return Learned(
        key, direction, list(values), len(gaps), float(np.median(gaps)), max(gaps), _rounded_up(chosen), before
    )  # fmt: skip


def learn_all(
    evaluations: Sequence[Mapping[str, MetricValue]],
    keys: Sequence[str],
    quantile: float,
    gates: Mapping[str, GateSpec],
    parts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Learned]:
    """`learn` for every address in `keys`.

    Args:
        gates: of the file that is updated.
        parts: the addresses that one such as slice.worst.nll stands for.

    Raises:
        SveError: see `learn`; an address that an evaluation does not have; a slack that reaches the gate's `detect`.
    """
    found = []
    for key in keys:
        places = parts.get(key) or [key]
        for table in evaluations:
            if missing := [place for place in places if place not in table]:
                hint = f"They have: {', '.join(sorted(table)[:30])}."
                raise SveError(f"Not every evaluation has a metric '{missing[0]}'.", hint)
        gate, direction = gates.get(key, GateSpec()), evaluations[0][places[0]].direction
        rows = [[table[place].value for place in places] for table in evaluations]
        worst = [min(row) if direction == "higher" else max(row) for row in rows]
        learned = learn(key, direction, worst, quantile, gate.slack, rows)
        if gate.detect is not None and gate.detect <= learned.slack:
            raise SveError(
                f"The slack learned for '{key}' is {learned.slack:g}, and its gate must detect {gate.detect:g}: it never could.",
                "Raise detect, or evaluate on more samples.",
            )
        found.append(learned)
    return found


def how_sure(evaluations: int, quantile: float, runs: int | None = None) -> tuple[str, bool]:
    """How far a slack from so many evaluations can be trusted, in a sentence; and whether they are few.

    Args:
        runs: how many runs or files they are of, where each was predicted at several batch sizes; None: each is of its own.
    """
    runs = evaluations if runs is None else runs
    pairs = evaluations * (evaluations - 1) // 2
    taken = "the largest" if quantile == 1.0 else f"the {100 * quantile:g} % quantile"
    many = f"{pairs} pairwise worsenings" if pairs > 1 else "one pairwise worsening"
    text = f"Slack is {taken} of {many} among {evaluations} evaluations." if pairs > 1 else f"Slack is {many}, of 2 evaluations."
    if runs == 1:
        told = "They differ in batch size alone: the slack covers arithmetic, and nothing of what training does by chance."
        return f"{text} {told}", False
    kind = "evaluation" if runs == evaluations else "run"
    text += f" Without any change, one further {kind} in {runs + 1} is worse than all of these."
    few = runs < ENOUGH
    if few:
        text += f" That is few: {ENOUGH} {kind}s give {ENOUGH * (ENOUGH - 1) // 2} pairs."
    return text, few


def _rounded_up(value: float) -> float:
    """Upwards to two digits; differences that are arithmetic alone become 0, since no gate fails on them."""
    if value <= ROUNDING:
        return 0.0
    digits = DIGITS - 1 - math.floor(math.log10(value))
    scaled = value * 10.0**digits
    whole = round(scaled) if abs(scaled - round(scaled)) < 1e-9 * scaled else math.ceil(scaled)
    return float(round(whole / 10.0**digits, max(digits, 0)))
