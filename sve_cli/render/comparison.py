"""Views of a comparison: Markdown, and one HTML file with the differences drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sve_cli.findings import Comparison, Difference, Pair
from sve_cli.render import figures, page
from sve_cli.render.markdown import bullets, section
from sve_cli.render.markdown import escape as md
from sve_cli.render.markdown import table as md_table
from sve_cli.render.tables import ARROWS, MISSING, Table, format_number, is_percent

MINUS = "\N{MINUS SIGN}"
HOW_TO_READ = (
    "A is the reference. Difference: B - A over the same samples, in points where the metric is in percent. Interval: what the "
    "difference would be on other test samples (paired bootstrap); where it holds 0, the verdict is a tie. p: how often a "
    "difference at least as large arises when A's and B's outputs are swapped at random; in parentheses after Holm's correction "
    "for all rows of the pair. Samples needed: about how many would show a difference of this size (80 % power, 5 % level), by a "
    "normal approximation. None of it says how much another training seed would change."
)
FOREST_DETAIL = "Each row has a scale of its own. Bar: interval; line in the middle: no difference; grey: tie."


def render_markdown(comparison: Comparison) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    blocks = [f"# {md(title(comparison))}", md(subtitle(comparison))]
    for pair in comparison.pairs:
        blocks.append(f"## A = {md(comparison.reference)}, B = {md(pair.name)}")
        blocks += [bullets(pair.sentences), bullets([f"Note: {note}" for note in pair.notes])]
        for heading, rows in groups(pair):
            blocks += [f"### {md(heading)}" if heading else "", md_table(difference_table(rows))]
    blocks += ["## How to read this", md(HOW_TO_READ), section("## Definitions", definition_table(comparison))]
    blocks.append(section("## Settings", settings_table(comparison.settings)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML file."""
    several = len(comparison.pairs) > 1
    first = comparison.pairs[0]
    headline = [pair.sentences[0] for pair in comparison.pairs] if several else first.sentences
    notes = [f"{pair.name}: {note}" if several else note for pair in comparison.pairs for note in pair.notes]
    blocks = [page.head(title(comparison), subtitle(comparison), headline, notes)]
    for pair in comparison.pairs:
        blocks.append(f"<h2>A = {escape(comparison.reference)}, B = {escape(pair.name)}</h2>")
        if several:
            blocks.append(page.bullets(pair.sentences))
        for heading, rows in groups(pair):
            blocks.append(f"<h3>{escape(heading)}</h3>" if heading else "")
            blocks.append(page.table(difference_table(rows), heading or "Differences", "sticky"))
        drawn = [page.figure(caption, FOREST_DETAIL, forest_svg(rows, caption)) for caption, rows in _drawn(pair)]
        blocks.append(page.figures(drawn))
    blocks += [
        "<h2>How to read this</h2>",
        f"<p>{escape(HOW_TO_READ)}</p>",
        page.section("Definitions", definition_table(comparison), "words"),
        page.section("Settings", settings_table(comparison.settings), "facts"),
    ]
    return page.page(title(comparison), blocks)


def title(comparison: Comparison) -> str:
    """What is compared, in one line."""
    others = comparison.pairs
    named = others[0].name if len(others) == 1 else f"{len(others)} systems"
    return f"{named} against {comparison.reference}"


def subtitle(comparison: Comparison) -> str:
    """The data and how many members each averages."""
    systems = [(comparison.reference, comparison.members), *((pair.name, pair.members) for pair in comparison.pairs)]
    members = ", ".join(f"{name} {n}" for name, n in systems)
    sizes = {pair.n for pair in comparison.pairs}
    samples = f"{sizes.pop():,} paired samples · " if len(sizes) == 1 else ""
    return f"{comparison.dataset} · {samples}members: {members}"


def groups(pair: Pair) -> list[tuple[str, list[Difference]]]:
    """The rows under their headings: the metrics (no heading), after scaling, and each OOD set."""
    found: dict[str, list[Difference]] = {}
    for row in pair.differences:
        scaled = row.key.startswith("temperature.")
        heading = "After temperature scaling of both" if scaled else f"Telling {row.group} from the test set" if row.group else ""
        found.setdefault(heading, []).append(row)
    return list(found.items())


def difference_table(rows: Sequence[Difference]) -> Table:
    """One line a metric; bold where one side is better."""
    cells = []
    for row in rows:
        unit = " %" if is_percent(row.metric) else ""
        shown = [number(row.metric, value) for value in (row.reference, row.other)]
        interval = f"{number(row.metric, row.low, True)} to {number(row.metric, row.high, True)}"
        p = MISSING if row.p_value is None or row.p_holm is None else f"{p_text(row.p_value)} ({p_text(row.p_holm)})"
        needed = MISSING if row.n_needed is None else rounded(row.n_needed)
        name = f"{row.label}{unit} {ARROWS[row.direction]}".strip()
        cells.append([name, *shown, number(row.metric, row.difference, True), interval, p, needed, _verdict(row)])
    strong = frozenset(i for i, row in enumerate(rows) if not row.is_tie and row.direction != "none")
    columns = ["Metric", "A", "B", "Difference", "Interval", "p (Holm)", "Samples needed", "Verdict"]
    return Table(columns, cells, frozenset(range(1, 7)), strong)


def _verdict(row: Difference) -> str:
    """`tie`, or `B better` on one line."""
    return row.verdict.partition(" (")[0].replace(" ", "\N{NO-BREAK SPACE}")


def narrow_tables(rows: Sequence[Difference]) -> list[Table]:
    """The same as two tables that fit a terminal of 80 columns."""
    wide = difference_table(rows)
    judged = [[r[0], r[1], r[2], f"{r[3]} ({r[4]})", r[7]] for r in wide.rows]
    tested = [[r[0], r[5], r[6]] for r in wide.rows]
    return [
        Table([*wide.columns[:3], "Difference (interval)", "Verdict"], judged, frozenset({1, 2, 3}), wide.strong),
        Table(["Metric", "p (Holm)", "Samples needed"], tested, frozenset({1, 2}), wide.strong),
    ]


def number(metric: str, value: float, signed: bool = False) -> str:
    """A value with one digit more than a report shows, because differences are small: percent where the metric is in percent."""
    if not math.isfinite(value):
        return MISSING
    digits = len(format_number(metric, 0.0).partition(".")[2]) + 1
    text = f"{100 * value if is_percent(metric) else value:{'+' if signed else ''}.{digits}f}"
    # Exactly nothing has no sign; what only rounds to nothing keeps it, because the side of 0 decides.
    return text.lstrip("+-") if value == 0.0 else text.replace("-", MINUS)


def p_text(p: float) -> str:
    """A p-value with two digits that mean something."""
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.01 else f"{p:.4f}"


def rounded(n: int) -> str:
    """A number of samples to two digits, with separators: it is an approximation."""
    if n >= 10**9:
        return "over a billion"
    return f"{round(n, -max(len(str(n)) - 2, 0)):,}"


def definition_table(comparison: Comparison) -> Table:
    """Every metric once."""
    found: dict[str, list[str]] = {}
    for row in (row for pair in comparison.pairs for row in pair.differences):
        key = row.key.removeprefix("temperature.")
        found.setdefault(f"{row.metric} {row.label}", [row.label, row.definition, row.metric if row.group else key])
    return Table(["Metric", "Definition", "Report key"], list(found.values()))


def settings_table(settings: dict[str, object]) -> Table:
    """How the numbers were made."""
    return Table(["What", "Value"], [[key.replace("_", " "), str(value)] for key, value in settings.items()])


def _drawn(pair: Pair) -> list[tuple[str, list[Difference]]]:
    """The rows that have a better side, a figure for each heading."""
    judged = [(heading or "Metrics", [row for row in rows if row.direction != "none"]) for heading, rows in groups(pair)]
    return [(heading, rows) for heading, rows in judged if rows]


def forest_svg(rows: Sequence[Difference], label: str) -> str:
    """Differences with their intervals, what is better for B on the right; each row scaled to its own longer end."""
    step, top, left, right = 24.0, 24.0, 158.0, 348.0
    n = float(len(rows))
    plot = figures.Frame((left, top, right, top + step * n), (-1.0, 1.0), (0.0, n))
    plot.text(left, 12, "A better", "name", "start")
    plot.text(right, 12, "B better", "name", "end")
    for i, row in enumerate(rows):
        y = n - i - 0.5
        plot.line((-1.0, y), (1.0, y), "grid")
        plot.text(left - 12, plot.y(y) + 3.8, row.label if len(row.label) <= 28 else f"{row.label[:27]}…", anchor="end")
        sign = 1.0 if row.direction == "higher" else -1.0
        scale = sign / (max(abs(row.low), abs(row.high), abs(row.difference)) or 1.0)
        side = "tie" if row.is_tie else "id" if row.verdict == "B better" else "ood"
        plot.line((scale * row.low, y), (scale * row.high, y), f"stroke-{side}")
        (plot.square if side == "ood" else plot.dot)((scale * row.difference, y), f"dot-{side}")
    plot.line((0.0, 0.0), (0.0, n), "axis")
    return figures.svg(top + step * n + 4, f"Differences: {label}", plot.parts)
