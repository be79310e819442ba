"""Views of the member curves: Markdown, and one HTML file with a figure for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sve_cli.findings import Curve, CurvePoint, MemberCurves
from sve_cli.render import figures, page
from sve_cli.render.comparison import number, settings_table
from sve_cli.render.markdown import bullets, section
from sve_cli.render.markdown import escape as md
from sve_cli.render.tables import ARROWS, MAIN_METRICS, MISSING, Table, is_percent

HOW_TO_READ = (
    "A value is the mean over the subsets of that many members. In parentheses: its bootstrap interval, over samples, moved "
    "onto the value where resampling adds to it (a report tests calibration errors, which gives other ends). Range: the "
    "lowest and highest subset. Bold: enough by NLL. All numbers of members share their resamples. It is "
    "about these members on these samples: elsewhere others could be needed."
)
FIGURE_DETAIL = "Line: mean over subsets, shaded: its interval; thin strokes: lowest and highest subset."


def render_markdown(found: MemberCurves) -> str:
    """The curves as GitHub-flavoured Markdown."""
    blocks = [f"# {md(title(found))}", md(subtitle(found)), bullets(found.sentences)]
    blocks.append(bullets([f"Note: {note}" for note in found.notes]))
    blocks += [section(f"## {md(heading)}", table) for heading, table in size_tables(found)]
    blocks.append(section("## Every metric", curve_table(found.curves)))
    blocks += ["## How to read this", md(HOW_TO_READ), section("## Definitions", definition_table(found.curves))]
    blocks.append(section("## Settings", made_with(found)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(found: MemberCurves) -> str:
    """The curves as one self-contained HTML file."""
    drawn = [page.figure(heading(curve), "", curve_svg(curve)) for curve in found.curves]
    blocks = [
        page.head(title(found), subtitle(found), found.sentences, found.notes),
        *(page.section(name, table, "sticky") for name, table in size_tables(found)),
        f"<h2>Curves</h2>\n<p>{escape(FIGURE_DETAIL)}</p>",
        page.figures(drawn),
        page.section("Every metric", curve_table(found.curves), "sticky"),
        "<h2>How to read this</h2>",
        f"<p>{escape(HOW_TO_READ)}</p>",
        page.section("Definitions", definition_table(found.curves), "words"),
        page.section("Settings", made_with(found), "facts words"),
    ]
    return page.page(title(found), blocks)


def title(found: MemberCurves) -> str:
    """What was asked, in one line."""
    return f"How many members does {found.name} need?"


def subtitle(found: MemberCurves) -> str:
    """The data, its size, and the members there are."""
    return f"{found.dataset} · {found.n:,} samples · {found.members} members"


def heading(curve: Curve, with_set: bool = True) -> str:
    """Label, set, unit and which way is better."""
    where = f" on {curve.group}" if curve.group and with_set else ""
    return f"{curve.label}{where}{' %' if is_percent(curve.metric) else ''} {ARROWS[curve.direction]}".strip()


def size_tables(found: MemberCurves) -> list[tuple[str, Table]]:
    """Tables with one line a number of members, under their headings: the main metrics, and each OOD set."""
    groups: dict[str, list[Curve]] = {}
    for curve in found.curves:
        if curve.group or curve.metric.rstrip("0123456789") in MAIN_METRICS:
            groups.setdefault(f"Telling {curve.group} from the test set" if curve.group else "Main metrics", []).append(curve)
    return [(name, _size_table(found, curves)) for name, curves in groups.items()]


def _size_table(found: MemberCurves, curves: Sequence[Curve]) -> Table:
    rows = []
    for size in range(1, found.members + 1):
        points = [next((point for point in curve.points if point.members == size), None) for curve in curves]
        rows.append([str(size), *(_with_interval(curve, point) for curve, point in zip(curves, points, strict=True))])
    strong = frozenset({found.enough - 1} if found.enough else ())
    columns = ["Members", *(heading(curve, with_set=False) for curve in curves)]
    return Table(columns, rows, frozenset(range(1, len(columns))), strong)


def curve_table(curves: Sequence[Curve]) -> Table:
    """One line a metric and number of members."""
    rows = []
    for curve in curves:
        for point in curve.points:
            values = [number(curve.metric, value) for value in (point.smallest, point.largest)]
            ends = [number(curve.metric, value, True) for value in (point.difference_low, point.difference_high)]
            whole = point is curve.points[-1]
            difference = MISSING if whole else f"{number(curve.metric, point.difference, True)} ({ends[0]} to {ends[1]})"
            spread = MISSING if whole else " to ".join(values)
            rows.append([heading(curve), str(point.members), _with_interval(curve, point), spread, difference])
    columns = ["Metric", "Members", "Mean (interval)", "Range", "Difference to all (interval)"]
    return Table(columns, rows, frozenset(range(1, 5)))


def made_with(found: MemberCurves) -> Table:
    """The settings, and how many subsets of each size were taken."""
    longest = max(found.curves, key=lambda curve: len(curve.points))
    counts = ", ".join(f"{p.subsets} of {p.members}" + ("" if p.every else " (at random)") for p in longest.points)
    return settings_table({"subsets": counts, **found.settings})


def _with_interval(curve: Curve, point: CurvePoint | None) -> str:
    if point is None:
        return MISSING
    low, high = (number(curve.metric, value) for value in (point.low, point.high))
    return f"{number(curve.metric, point.value)} ({low}-{high})"


def definition_table(curves: Sequence[Curve]) -> Table:
    """Every metric once."""
    found = {curve.label: [curve.label, curve.definition, curve.metric] for curve in curves}
    return Table(["Metric", "Definition", "Report key"], list(found.values()))


def curve_svg(curve: Curve) -> str:
    """Value against the number of members, with its interval and the range over subsets."""
    factor = 100.0 if is_percent(curve.metric) else 1.0
    points = curve.points
    ends = [factor * value for p in points for value in (p.low, p.high, p.smallest, p.largest, p.value)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 0.5
    first, last = points[0].members, points[-1].members
    plot = figures.Frame((46, 8, 348, 148), (min(1, first) - 0.3, last + 0.3), (low - room, high + room))
    plot.y_axis(figures.nice_ticks(low - room, high + room, 4), "")
    band = [(p.members, factor * p.low) for p in points] + [(p.members, factor * p.high) for p in reversed(points)]
    plot.path(band, "band")
    for p in points:
        plot.line((p.members, factor * p.smallest), (p.members, factor * p.largest), "whisker")
    plot.path([(p.members, factor * p.value) for p in points], "stroke-id")
    for p in points:
        plot.dot((p.members, factor * p.value), "dot-id")
    plot.x_axis(list(range(1, last + 1)) if last <= 12 else figures.nice_ticks(1, last, 6), "Members")
    return figures.svg(186, heading(curve), plot.parts)
