"""Cost against NLL of a benchmark's rows, as inline SVG, with the rows that no other row beats in both.

Points are (cost, NLL, name).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sve_cli.render.figures import WIDTH, Frame, nice_ticks, svg

Point = tuple[float, float, str]
_Box = tuple[float, float, float, float]  # left, top, right, bottom
_LETTER, _HIGH, _CLEAR = 6.1, 11.0, 5.0  # width and height of a letter, and what a marker takes to each side


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in one of cost and NLL without being worse in the other, by cost."""
    found: list[Point] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def pareto_svg(points: Sequence[Point], name: str, spreads: Mapping[str, float] | None = None) -> str:
    """Cost (logarithmic, called `name`) against NLL, with the front as a line; empty for fewer than two points.

    Args:
        spreads: row -> standard deviation of its NLL over the seeds, drawn as a whisker to both sides.
    """
    if len(points) < 2:
        return ""
    best = front(points)
    ends = {row: (y - s, y + s) for _, y, row in points for s in [(spreads or {}).get(row, 0.0)]}
    frame = _frame(points, ends)
    _axes(frame, ends, name)
    steps = [(math.log10(x), y) for x, y, _ in best]
    frame.path(steps, "stroke-id")
    _labels(frame, points, ends)
    for x, y, row in points:
        on_front, (low, high) = (x, y, row) in best, ends[row]
        if high > low:
            frame.line((math.log10(x), low), (math.log10(x), high), "whisker" if on_front else "whisker-ood")
        (frame.dot if on_front else frame.square)((math.log10(x), y), "dot-id" if on_front else "dot-ood")
    return svg(frame.bottom + 44, f"{name} against NLL", frame.parts)


def _frame(points: Sequence[Point], ends: Mapping[str, tuple[float, float]]) -> Frame:
    logs, values = [math.log10(x) for x, _, _ in points], [y for pair in ends.values() for y in pair]
    wide, high = max(logs) - min(logs) or 1.0, max(values) - min(values) or 0.1 * abs(values[0]) or 1.0
    x, y = (min(logs) - 0.1 * wide, max(logs) + 0.15 * wide), (min(values) - 0.1 * high, max(values) + 0.1 * high)
    bottom = 228 + 14 * max(len(points) - 6, 0)  # many names need room
    return Frame((46, 28, WIDTH - 8, bottom), x, y)


def _axes(frame: Frame, ends: Mapping[str, tuple[float, float]], name: str) -> None:
    frame.y_axis(nice_ticks(min(low for low, _ in ends.values()), max(high for _, high in ends.values()), 4), "NLL")
    frame.line((frame.x_range[0], frame.y_range[0]), (frame.x_range[1], frame.y_range[0]), "axis")
    for tick in _log_ticks(*frame.x_range):
        frame.text(frame.x(math.log10(tick)), frame.bottom + 14, f"× {tick:g}")
    frame.text((frame.left + frame.right) / 2, frame.bottom + 31, name, "name")


def _log_ticks(low: float, high: float) -> list[float]:
    """Round factors between two powers of ten: two to seven of them where there are that many."""
    for leads in ((1,), (1, 3), (1, 2, 5)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [float(f"{lead * 10.0**k:.6g}") for k in powers for lead in leads if low <= k + math.log10(lead) <= high]
        if len(found) >= 3:
            return found
    return nice_ticks(10**low, 10**high, 4)


def _labels(frame: Frame, points: Sequence[Point], ends: Mapping[str, tuple[float, float]]) -> None:
    """Each row's name beside its marker, where it covers nothing else; a thin line leads to one farther away."""
    places = [(frame.x(math.log10(x)), frame.y(y), name) for x, y, name in points]
    taken: list[_Box] = [(x - _CLEAR, y - _CLEAR, x + _CLEAR, y + _CLEAR) for x, y, _ in places]
    taken += [(x - 1, frame.y(ends[name][1]), x + 1, frame.y(ends[name][0])) for x, _, name in places]
    for i, (x, y, name) in sorted(enumerate(places), key=lambda entry: entry[1][1]):
        others = [box for k, box in enumerate(taken) if k != i]
        options = _options(x, y, _LETTER * len(name))
        usable = [o for o in options if _inside(o[0], frame) and not any(_overlap(o[0], box) for box in others)]
        box, anchor = (usable or [o for o in options if _inside(o[0], frame)] or options)[0]
        taken.append(box)
        left = {"start": box[0], "end": box[2], "middle": (box[0] + box[2]) / 2}[anchor]
        if abs((box[1] + box[3]) / 2 - y) > 2 * _HIGH:
            frame.parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}L{left:.1f} {box[1] if box[1] > y else box[3]:.1f}"/>')
        frame.text(left, box[3] - 2, name, "value halo", anchor)


def _options(x: float, y: float, width: float) -> list[tuple[_Box, str]]:
    """Boxes for a name of this width, the nearest to the marker first."""
    found: list[tuple[_Box, str]] = []
    for away in (0.0, *(sign * 13.0 * k for k in range(1, 12) for sign in (1, -1))):
        top, bottom = y + away - _HIGH / 2, y + away + _HIGH / 2
        found += [((x + 7, top, x + 7 + width, bottom), "start"), ((x - 7 - width, top, x - 7, bottom), "end")]
        if away:
            found.append(((x - width / 2, top, x + width / 2, bottom), "middle"))
    return found


def _inside(box: _Box, frame: Frame) -> bool:
    return box[0] >= frame.left and box[2] <= WIDTH - 2 and box[1] >= frame.top - 14 and box[3] <= frame.bottom - 1


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
