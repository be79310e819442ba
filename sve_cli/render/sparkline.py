"""Small charts of one line of text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sve_cli.report import ReliabilityBin, Report

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "·"
MOST = 60  # letters; longer series are thinned
FEWEST = 10  # samples of a bin whose gap is drawn


def sparkline(values: Sequence[float | None], low: float | None = None) -> str:
    """A block a value, from `low` (default: the smallest value) to the largest; a dot where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return GAP * len(values)
    bottom, top = min(finite) if low is None else low, max(finite)

    def block(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return GAP
        share = (value - bottom) / (top - bottom) if top > bottom else 0.0
        return BLOCKS[min(int(share * len(BLOCKS)), len(BLOCKS) - 1)]

    return "".join(map(block, values))


def spark_lines(report: Report) -> list[str]:
    """The reliability gap by bin of confidence and the validation NLL by epoch, one line each; nothing where not known."""
    return [line for line in (_gap_line(report.row("ensemble").reliability), _nll_line(report.history)) if line]


def _gap_line(bins: Sequence[ReliabilityBin]) -> str:
    filled = [b for b in bins if b.count]
    if not filled:
        return ""
    width = filled[0].upper - filled[0].lower
    gaps: list[float | None] = [None] * max(round(1 / width), 1)
    for b in filled:
        if b.count >= FEWEST:
            gaps[min(round(b.lower / width), len(gaps) - 1)] = abs(b.confidence - b.accuracy)
    # The gap that adds most to the calibration error: a bin of three samples may be far off and mean nothing.
    worst = max(filled, key=lambda b: b.count * abs(b.confidence - b.accuracy))
    gap = 100 * (worst.confidence - worst.accuracy)
    word = "over" if gap > 0 else "under"
    where = f"{100 * worst.lower:.0f}-{100 * worst.upper:.0f} %"
    return f"Gap by confidence  {sparkline(gaps, 0.0)}  {word}-confident by {abs(gap):.1f} points at {where}"


def _nll_line(history: Sequence[dict[str, Any]]) -> str:
    values = [line.get("validation_nll") for line in history]
    known = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if len(known) < 2:
        return ""
    step = math.ceil(len(known) / MOST)
    thinned = [*known[:-1:step], known[-1]]
    return f"Validation NLL by epoch  {sparkline(thinned)}  {known[0]:.3f} to {known[-1]:.3f}"
