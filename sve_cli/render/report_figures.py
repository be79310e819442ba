"""What the figures of a report show, taken from the report's own numbers; with the words and small tables beside them."""

from __future__ import annotations

import math
import re

from sve_cli.render import tables
from sve_cli.render.curves import Strip
from sve_cli.render.figures import Point
from sve_cli.render.tables import Table
from sve_cli.report import Report

_RISK = re.compile(r"risk_at_(\d+)")


def marks(report: Report) -> list[Point]:
    """(share answered, error rate) of the ensemble's `risk_at_…` metrics."""
    metrics = report.row("ensemble").metrics
    found = [(int(match[1]) / 100.0, metric.value) for key, metric in metrics.items() if (match := _RISK.fullmatch(key))]
    return [(x, y) for x, y in found if math.isfinite(y)]


def abstention(report: Report) -> list[Point]:
    """(share answered, error rate) of the abstention rule on the test set."""
    found = [decision.measured for decision in report.decisions if decision.key == "abstention"]
    return [(measured["answered"].value, measured["risk"].value) for measured in found if "risk" in measured]


def risk_caption(report: Report) -> str:
    """What the marks are."""
    shares = [f"{100 * x:.0f} %" for x, _ in marks(report)]
    dots = f"Dots: {', '.join(shares)} answered." if shares else ""
    square = " Square: where the abstention rule stands." if abstention(report) else ""
    return dots + square


def coverage_table(report: Report) -> Table:
    """Error rate at some shares answered: by confidence, in the best possible order, at random."""
    curve = report.risk_curve
    assert curve is not None
    rows = []
    for wanted in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        i = min(range(len(curve.coverage)), key=lambda i: abs(curve.coverage[i] - wanted))
        interval = f"{_share(curve.low[i])}-{_share(curve.high[i])}"
        shown = [f"{_share(curve.risk[i])} ({interval})", _share(curve.oracle[i]), _share(curve.random)]
        rows.append([f"{100 * curve.coverage[i]:.0f}", *shown])
    rows = list({row[0]: row for row in rows}.values())  # few samples: the same share more than once
    return Table(["Answered %", "Errors %", "Best possible order", "At random"], rows, frozenset({1, 2, 3}))


def _share(value: float) -> str:
    return tables.format_number("risk_at_90", value)


def bins_used(report: Report) -> int | None:
    """The number of bins of the report's calibration error."""
    key = tables.find_key(report.rows, "ece_top1_w") or ""
    found = re.search(r"\d+$", key)
    return int(found[0]) if found else None


def bars(report: Report) -> list[tuple[str, float, float]]:
    """(name, aleatoric, epistemic) of all answers, of the right and of the wrong ones."""
    split = tables.split_parts(report)
    found = [(f"All answers ({split[0].n:,})", split[1].value, split[2].value)] if split else []
    _, aleatoric, epistemic = tables.SPLIT_METRICS
    for part in report.answers:
        if part.metrics:
            name = f"{part.key.capitalize()} answers ({part.n:,})"
            found.append((name, part.metrics[aleatoric].value, part.metrics[epistemic].value))
    return found


def strips(report: Report) -> list[Strip]:
    """One line for each main metric that every member and the ensemble have."""
    members, metrics = tables.member_rows(report), report.row("ensemble").metrics
    found = []
    for key in tables.main_keys(report) if members else []:
        if key not in metrics or not all(key in row.metrics for row in members):
            continue
        values = [row.metrics[key].value for row in members]
        everything = [*values, metrics[key].value]
        if all(math.isfinite(value) for value in everything):
            low, high = (tables.format_number(key, end(everything)) for end in (min, max))
            found.append(Strip(tables.metric_header(key, metrics[key]), values, metrics[key].value, low, high))
    return found


def member_sentences(report: Report) -> list[str]:
    """How the ensemble compares with the mean of its members."""
    lines = []
    for strip, key in zip(strips(report), tables.main_keys(report), strict=False):
        mean = sum(strip.members) / len(strip.members)
        unit = " %" if tables.is_percent(key) else ""
        name = tables.metric_name(key)
        one, all_ = (tables.format_number(key, value) for value in (mean, strip.ensemble))
        lines.append(f"{name}: {all_}{unit} together, {one}{unit} for a member on average.")
    return lines
