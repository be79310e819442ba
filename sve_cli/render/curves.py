"""More figures of a report as inline SVG: risk and coverage, bins, members, uncertainty by answer, heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from sve_cli.render.figures import Frame, Point, legend, nice_ticks, svg
from sve_cli.report import BinChoice, RiskCurve

LETTER = 5.9  # width of a letter of the labels, in drawing units


def risk_svg(curve: RiskCurve, dots: Sequence[Point], squares: Sequence[Point], label: str) -> str:
    """Error rate against the share answered, with its band, the best possible order and a random one; marks on the curve."""
    wide = [high for share, high in zip(curve.coverage, curve.high, strict=True) if share >= 0.5]  # of few answers it is anything
    top = max([1.25 * max([curve.random, *curve.risk, *(y for _, y in squares)]), *wide]) or 1.0
    plot = Frame((42, 44, 348, 228), (0, 1), (0, top))
    plot.y_axis([t / 100 for t in nice_ticks(0, 100 * top, 4)], "Errors among the answered", _percent_form(top))
    band = [(x, min(y, top)) for x, y in zip(curve.coverage, curve.high, strict=True)]
    plot.path([*band, *reversed(list(zip(curve.coverage, curve.low, strict=True)))], "band")
    plot.path([(0, curve.random), (1, curve.random)], "diagonal")
    plot.path(list(zip(curve.coverage, curve.oracle, strict=True)), "stroke-ood")
    plot.path(list(zip(curve.coverage, curve.risk, strict=True)), "stroke-id")
    for dot in dots:
        plot.dot(dot, "dot-id")
    for square in squares:
        plot.square(square, "dot-ood")
    plot.x_axis([0, 0.2, 0.4, 0.6, 0.8, 1], "Share answered, the most confident first", ".0%")
    legend(plot, [("stroke-id", "by confidence"), ("stroke-ood", "best possible order"), ("diagonal", "at random")])
    return svg(266, label, plot.parts)


def bins_svg(choices: Sequence[BinChoice], used: int | None, label: str) -> str:
    """The calibration error against the number of bins (evenly spaced as they come); a line at the number in use."""
    values = [value for c in choices for value in (c.width, c.mass) if math.isfinite(value)]
    top = 1.25 * max(values, default=0.0) or 1.0
    plot = Frame((42, 44, 348, 178), (-0.3, len(choices) - 0.7), (0, top))
    plot.y_axis([t / 100 for t in nice_ticks(0, 100 * top, 4)], "Calibration error", _percent_form(top))
    for i, choice in enumerate(choices):
        plot.text(plot.x(i), plot.bottom + 14, str(choice.bins))
        if choice.bins == used:
            plot.line((i, 0), (i, top), "diagonal")
            plot.dot((i, choice.width), "dot-id", 4.2)
    for i, choice in enumerate(choices):
        plot.dot((i, choice.width), "dot-id")
        plot.square((i, choice.mass), "dot-ood")
    plot.path([(i, c.mass) for i, c in enumerate(choices)], "stroke-ood")
    plot.path([(i, c.width) for i, c in enumerate(choices)], "stroke-id")
    plot.x_axis([], "Number of bins")
    legend(plot, [("stroke-id", "equal width"), ("stroke-ood", "equal mass")])
    return svg(216, label, plot.parts)


class Strip(NamedTuple):
    """One number of every member and of the ensemble; `shown` formats it."""

    name: str
    members: list[float]
    ensemble: float
    low: str
    high: str


def strips_svg(strips: Sequence[Strip], label: str) -> str:
    """One line a metric: the members as dots, the ensemble as a square, each line on its own scale."""
    parts: list[str] = []
    for i, strip in enumerate(strips):
        values = [*strip.members, strip.ensemble]
        low, high = min(values), max(values)
        if not high > low:
            low, high = low - 0.5, high + 0.5
        y = 44.0 + 52.0 * i
        line = Frame((20, y, 340, y + 16), (low, high), (0, 1))
        line.text(4, y - 6, strip.name, "name", "start")
        line.line((low, 0.5), (high, 0.5), "axis")
        for value in strip.members:
            line.dot((value, 0.5), "dot-id", 4.2)
        line.square((strip.ensemble, 0.5), "dot-ood")
        line.text(line.left, y + 27, strip.low, "tick", "start")
        line.text(line.right, y + 27, strip.high, "tick", "end")
        parts += line.parts
    key = Frame((0, 0, 360, 1), (0, 360), (0, 1))
    key.parts.append('<circle class="dot-id" cx="10" cy="8" r="4.2"/><rect class="dot-ood" x="87" y="5" width="6" height="6"/>')
    key.text(20, 12, "a member", "name", "start")
    key.text(100, 12, "the ensemble", "name", "start")
    return svg(44 + 52 * len(strips) - 6, label, key.parts + parts) if strips else ""


def bars_svg(bars: Sequence[tuple[str, float, float]], label: str) -> str:
    """Stacked bars on one scale: (name, aleatoric, epistemic) in nats."""
    longest = max((a + e for _, a, e in bars), default=0.0)
    if not longest > 0:
        return ""
    parts: list[str] = []
    for i, (name, aleatoric, epistemic) in enumerate(bars):
        y = 40.0 + 46.0 * i
        bar = Frame((4, y, 300, y + 18), (0, longest), (0, 1))
        bar.text(4, y - 5, name, "name", "start")
        bar.rect((0, 0), (aleatoric, 1), "solid-id")
        bar.rect((aleatoric, 0), (aleatoric + epistemic, 1), "solid-ood")
        bar.text(bar.x(aleatoric + epistemic) + 5, y + 13, f"{aleatoric + epistemic:.3f}", "value", "start")
        parts += bar.parts
    key = Frame((0, 0, 360, 1), (0, 360), (0, 1))
    key.parts.append(
        '<rect class="solid-id" x="4" y="3" width="10" height="10"/><rect class="solid-ood" x="90" y="3" width="10" height="10"/>'
    )
    key.text(18, 12, "aleatoric", "name", "start")
    key.text(104, 12, "epistemic (nats per sample)", "name", "start")
    return svg(40 + 46 * len(bars) - 24, label, key.parts + parts)


class Heat(NamedTuple):
    """A matrix to be drawn: a line a row; None: nothing there. `pale`, `full`: the values without and with all of the colour."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    texts: list[list[str]]
    axis: str
    pale: float
    full: float
    ends: tuple[str, str]


def heat_svg(heat: Heat, label: str) -> str:
    """Squares, the more coloured the larger the value; negative ones in the other colour. The value stands in each one's title."""
    longest = 24
    names = [name if len(name) <= longest else "…" + name[1 - longest :] for name in heat.rows]
    left = 12 + LETTER * max((len(name) for name in names), default=0)
    height = 16.0
    plot = Frame((left, 26, 352, 26 + height * len(names)), (0, len(heat.columns)), (len(names), 0))
    side = (plot.right - plot.left) / max(len(heat.columns), 1)
    for r, name in enumerate(names):
        plot.text(left - 6, plot.y(r + 0.5) + 3.8, name, anchor="end")
        for c in range(len(heat.columns)):
            value = heat.values[r][c]
            if value is None or not math.isfinite(value):
                continue
            span = heat.full - heat.pale
            strength = min(max((abs(value) - heat.pale) / span, 0.0), 1.0) if span > 0 else 0.0
            box = f'x="{plot.x(c):.1f}" y="{plot.y(r) + 0.5:.1f}" width="{max(side - 0.6, 0.6):.1f}" height="{height - 1:.1f}"'
            style = "solid-ood" if value < 0 else "solid-id"
            title = f"<title>{escape(heat.texts[r][c])}</title>"
            plot.parts.append(f'<rect class="{style}" fill-opacity="{0.05 + 0.95 * strength:.2f}" {box}>{title}</rect>')
    widest = LETTER * max((len(column) for column in heat.columns), default=1) + 5
    step = max(1, math.ceil(widest / side))
    for c in range(0, len(heat.columns), step):
        plot.text(plot.x(c + 0.5), plot.bottom + 14, heat.columns[c])
    plot.text((plot.left + plot.right) / 2, plot.bottom + 31, heat.axis, "name")
    _scale(plot, heat.ends)
    return svg(plot.bottom + 38, label, plot.parts)


def _scale(plot: Frame, ends: tuple[str, str]) -> None:
    """A key from pale to full above the plot, at its right end."""
    x = 352 - LETTER * len(ends[1]) - 62
    for i in range(5):
        opacity = f'fill-opacity="{0.05 + 0.95 * i / 4:.2f}"'
        plot.parts.append(f'<rect class="solid-id" {opacity} x="{x + 10 * i:.1f}" y="4" width="10" height="9"/>')
    plot.text(x - 4, 12, ends[0], "tick", "end")
    plot.text(352, 12, ends[1], "tick", "end")


def _percent_form(top: float) -> str:
    return ".0%" if top >= 0.04 else ".1%" if top >= 0.004 else ".2%"
