"""Figures of a report as inline SVG: no script, no fonts, no files. Colours come from the CSS classes in `html_style.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from sve_cli.report import ReliabilityBin

WIDTH = 360.0
Point = tuple[float, float]


class Frame:
    """A plot area inside a drawing: data coordinates to drawing units, and the parts drawn so far."""

    def __init__(self, box: tuple[float, float, float, float], x: Point, y: Point) -> None:
        """`box`: left, top, right, bottom in drawing units; `x`, `y`: lowest and highest data value."""
        self.left, self.top, self.right, self.bottom = box
        self.x_range, self.y_range = x, y
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1.0)

    def line(self, a: Point, b: Point, style: str) -> None:
        """A straight line between two data points."""
        self.parts.append(
            f'<path class="{style}" d="M{self.x(a[0]):.1f} {self.y(a[1]):.1f}L{self.x(b[0]):.1f} {self.y(b[1]):.1f}"/>'
        )

    def rect(self, low: Point, high: Point, style: str) -> None:
        """A box between two data points (lower left, upper right)."""
        x, y = self.x(low[0]), self.y(high[1])
        width, height = max(self.x(high[0]) - x, 0.0), max(self.y(low[1]) - y, 0.0)
        self.parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')

    def path(self, points: Sequence[Point], style: str) -> None:
        """A line through data points."""
        if points:
            steps = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
            self.parts.append(f'<path class="{style}" d="M{steps}"/>')

    def dot(self, at: Point, style: str, radius: float = 3.2) -> None:
        self.parts.append(f'<circle class="{style}" cx="{self.x(at[0]):.1f}" cy="{self.y(at[1]):.1f}" r="{radius}"/>')

    def square(self, at: Point, style: str) -> None:
        self.parts.append(f'<rect class="{style}" x="{self.x(at[0]) - 3:.1f}" y="{self.y(at[1]) - 3:.1f}" width="6" height="6"/>')

    def text(self, x: float, y: float, text: str, style: str = "tick", anchor: str = "middle") -> None:
        """Text at drawing units."""
        self.parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def x_axis(self, ticks: Sequence[float], name: str, form: str = "g") -> None:
        self.line((self.x_range[0], self.y_range[0]), (self.x_range[1], self.y_range[0]), "axis")
        for tick in ticks:
            self.text(self.x(tick), self.bottom + 14, format(tick, form))
        self.text((self.left + self.right) / 2, self.bottom + 31, name, "name")

    def y_axis(self, ticks: Sequence[float], name: str, form: str = "g") -> None:
        """Grid lines with their values; the name stands above the axis, where it needs no turned head."""
        for tick in ticks:
            self.line((self.x_range[0], tick), (self.x_range[1], tick), "grid")
            self.text(self.left - 7, self.y(tick) + 3.8, format(tick, form), anchor="end")
        self.text(4, self.top - 11, name, "name", "start")


def svg(height: float, label: str, parts: Sequence[str]) -> str:
    """Wrap parts into a drawing that scales with its box and names itself to screen readers."""
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) between `low` and `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def reliability_svg(bins: Sequence[ReliabilityBin], label: str) -> str:
    """Accuracy against confidence with Wilson bands and the diagonal; counts per bin beneath."""
    filled = [b for b in bins if b.count > 0]
    plot = Frame((42, 28, 348, 258), (0, 1), (0, 1))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    plot.y_axis(ticks, "Accuracy", ".1f")
    for b in filled:
        plot.rect((b.lower, b.accuracy_low), (b.upper, b.accuracy_high), "band")
    plot.line((0, 0), (1, 1), "diagonal")
    plot.path([(b.confidence, b.accuracy) for b in filled], "stroke-id")
    for b in filled:
        plot.dot((b.confidence, b.accuracy), "dot-id")
    most = max((b.count for b in filled), default=1)
    counts = Frame((42, 300, 348, 350), (0, 1), (0, most))
    for b in filled:
        counts.rect((b.lower + 0.003, 0), (b.upper - 0.003, b.count), "bar-id")
    counts.text(35, 307, f"{most:,}", anchor="end")
    counts.text(35, 353, "0", anchor="end")
    counts.text(4, 289, "Samples", "name", "start")
    counts.x_axis(ticks, "Confidence", ".1f")
    return svg(388, label, plot.parts + counts.parts)


def histogram_svg(
    edges: Sequence[float],
    id_counts: Sequence[float],
    ood_counts: Sequence[float],
    label: str,
    names: tuple[str, str] = ("in distribution", "out of distribution"),
    axis: str = "Score (higher = more unlike the training data)",
) -> str:
    """Two histograms over the same edges, each as shares of its own side: the sides differ in size."""
    shares = [[count / (sum(side) or 1) for count in side] for side in (id_counts, ood_counts)]
    top = max((share for side in shares for share in side), default=0.0) or 1.0
    plot = Frame((42, 44, 348, 178), (edges[0], edges[-1]), (0, top * 1.04))
    plot.y_axis([t / 100 for t in nice_ticks(0, 100 * top, 3)], "Share of samples", ".0%")
    for side, name in zip(shares, ("id", "ood"), strict=True):
        outline: list[Point] = [(edges[0], 0)]
        for i, share in enumerate(side):
            outline += [(edges[i], share), (edges[i + 1], share)]
        outline.append((edges[-1], 0))
        plot.path(outline, f"fill-{name}")
        plot.path(outline, f"stroke-{name}")
    plot.x_axis(nice_ticks(edges[0], edges[-1], 5), axis)
    legend(plot, [("stroke-id", names[0]), ("stroke-ood", names[1])])
    return svg(216, label, plot.parts)


def roc_svg(id_shares: Sequence[float], ood_shares: Sequence[float], label: str) -> str:
    """The ROC curve: share of OOD flagged against share of in-distribution samples flagged; the dashed diagonal is chance."""
    plot = Frame((42, 28, 348, 258), (0, 1), (0, 1))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    plot.y_axis(ticks, "Share of OOD flagged", ".1f")
    plot.line((0, 0), (1, 1), "diagonal")
    plot.path(list(zip(id_shares, ood_shares, strict=True)), "stroke-ood")
    plot.x_axis(ticks, "Share of in-distribution samples flagged", ".1f")
    return svg(296, label, plot.parts)


def legend(plot: Frame, entries: Sequence[tuple[str, str]], y: float = 12) -> None:
    """Lines with their names above the plot: (style, name)."""
    x = 4.0
    for style, text in entries:
        plot.parts.append(f'<path class="{style}" d="M{x:.0f} {y - 4:.0f}h18"/>')
        plot.text(x + 24, y, text, "name", "start")
        x += 40 + 5.6 * len(text)


def _series(history: Sequence[dict[str, Any]], key: str) -> list[list[Point]]:
    """Values of `key` as lines (position from 1, value), one line a round."""
    rounds: dict[Any, list[Point]] = {}
    for i, line in enumerate(history):
        value = line.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            rounds.setdefault(line.get("round"), []).append((float(i + 1), float(value)))
    return list(rounds.values())


def _member_series(history: Sequence[dict[str, Any]]) -> list[list[Point]]:
    """The training loss of each member, one line a member and round; nothing where a round has one member."""
    rounds: dict[Any, list[Point]] = {}
    for i, line in enumerate(history):
        losses = line.get("member_train_loss") or []
        for m, value in enumerate(losses if len(losses) > 1 else []):
            if isinstance(value, (int, float)) and math.isfinite(value):
                rounds.setdefault((line.get("round"), m), []).append((float(i + 1), float(value)))
    return [line for line in rounds.values() if len(line) > 1]


def curve_svg(history: Sequence[dict[str, Any]], label: str) -> str:
    """Training loss (and each member's) and validation NLL by epoch; rounds one after another. Empty without such values."""
    train, validation = _series(history, "train_loss"), _series(history, "validation_nll")
    members = _member_series(history)
    points = [point for line in train + validation + members for point in line]
    if not points:
        return ""
    top = max(y for _, y in points) or 1.0
    bottom = min(0.0, min(y for _, y in points))
    last = len(history)
    plot = Frame((42, 44, 348, 228), (0.7, last + 0.3), (bottom, top * 1.05))
    plot.y_axis(nice_ticks(bottom, top * 1.05, 5), "Nats per sample")
    for line in members:
        plot.path(line, "stroke-thin")
    for lines, name in ((train, "ood"), (validation, "id")):
        for line in lines:
            plot.path(line, f"stroke-{name}")
            for point in line if last <= 40 else []:
                (plot.dot if name == "id" else plot.square)(point, f"dot-{name}")
    ticks = nice_ticks(1, last, 6) if last > 7 else list(range(1, last + 1))
    rounds = len({line.get("round") for line in history})
    plot.x_axis(ticks, "Epoch" if rounds == 1 else f"Epoch, {rounds} rounds one after another")
    entries = [("stroke-ood", "training loss")] * bool(train) + [("stroke-id", "validation NLL")] * bool(validation)
    legend(plot, entries + [("stroke-thin", "each member")] * bool(members))
    return svg(266, label, plot.parts)


def split_svg(aleatoric: float, epistemic: float, label: str) -> str:
    """One bar: total uncertainty cut into its aleatoric and its epistemic part."""
    total = aleatoric + epistemic
    if not total > 0:
        return ""
    bar = Frame((4, 24, 356, 46), (0, total), (0, 1))
    bar.rect((0, 0), (aleatoric, 1), "solid-id")
    bar.rect((aleatoric, 0), (total, 1), "solid-ood")
    bar.text(4, 14, f"aleatoric {100 * aleatoric / total:.0f} %", "name", "start")
    bar.text(356, 14, f"epistemic {100 * epistemic / total:.0f} %", "name", "end")
    return svg(50, label, bar.parts)


def pairs_svg(matrix: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], full: float, label: str) -> str:
    """One square for each pair of members, the more coloured the larger its value; the diagonal stays empty.

    `full`: the value that is fully coloured. Negative values have the other colour; squares too small for their text have none.
    """
    m = len(matrix)
    side = min(58.0, 330.0 / max(m, 1))
    plot = Frame((28, 40, 28 + m * side, 40 + m * side), (0, m), (m, 0))
    plot.text(4, 11, "Member", "name", "start")
    for a in range(m):
        plot.text(plot.x(a + 0.5), 33, str(a))
        plot.text(21, plot.y(a + 0.5) + 3.8, str(a), anchor="end")
        for b in range(m):
            x, y, value = plot.x(b), plot.y(a), matrix[a][b]
            strength = min(abs(value) / full, 1.0) if a != b and full > 0 and math.isfinite(value) else 0.0
            style = "solid-ood" if value < 0 else "solid-id"
            box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}"'
            plot.parts.append(f'<rect class="cell" {box}/><rect class="{style}" fill-opacity="{0.45 * strength:.2f}" {box}/>')
            if a != b and side >= 34:
                plot.text(plot.x(b + 0.5), plot.y(a + 0.5) + 3.8, texts[a][b], "value")
    return svg(44 + m * side, label, plot.parts)


def severity_svg(
    lines: Sequence[Sequence[Point]], mean: Sequence[Point], scaled: Sequence[Point], name: str, label: str, from_zero: bool
) -> str:
    """A metric by severity: thin for every corruption, thick for their mean, dashed for the mean after temperature scaling.

    `lines`, `mean`, `scaled`: (severity, value), ascending; the last two may be empty. `from_zero`: the axis starts at zero.
    """
    values = [y for line in (*lines, mean, scaled) for _, y in line if math.isfinite(y)]
    if not values:
        return ""
    low, high = (0.0 if from_zero else min(values)), max(values)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    last = max(x for line in (*lines, mean) for x, _ in line)
    plot = Frame((42, 44, 348, 228), (-0.15, last + 0.15), (low if from_zero else low - margin, high + margin))
    plot.y_axis(nice_ticks(*plot.y_range, 5), name)
    for line in lines:
        steps = "L".join(f"{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in line)
        plot.parts.append(f'<path class="stroke-tie" style="stroke-width:1;opacity:.5" d="M{steps}"/>')
    for points, style in ((scaled, "ood"), (mean, "id")):
        plot.path(points, f"stroke-{style}")
        for point in points:
            (plot.dot if style == "id" else plot.square)(point, f"dot-{style}")
    plot.x_axis(sorted({x for line in (*lines, mean) for x, _ in line}), "Severity (0 = clean)")
    shown = (
        [("id", "mean")] * bool(mean) + [("ood", "after temperature")] * bool(scaled) + [("tie", "each corruption")] * bool(lines)
    )
    legend(plot, [(f"stroke-{style}", text) for style, text in shown])
    return svg(266, label, plot.parts)
