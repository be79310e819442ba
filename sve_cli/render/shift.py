"""What `sve shift` found, as tables of plain text, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sve_cli.render import figures, markdown, page
from sve_cli.render.comparison import MINUS
from sve_cli.render.tables import MISSING, Table, format_number, is_percent, metric_name
from sve_cli.shift import CONFIDENCE, Estimate, Scores, Shift, find

ARROWS = {"accuracy": "↑", "nll": "↓", "ece_top1_w": "↓"}
NAMES = {"entropy_mean": "Entropy", "mutual_information_mean": "Mutual information", CONFIDENCE: "Confidence"}
SCALED = ("nll", "ece_top1_w")  # what a temperature is for
READING = (
    "Severity 0 is the clean set. The mean is over the corruptions, all on the same rows; grey lines are the single corruptions. "
    "Where accuracy falls, a calibrated network loses confidence with it, so that its calibration error stays low, and an "
    "ensemble's mutual information rises. With few rows a change inside the intervals is chance. Bold below: the worst corruption."
)


def head(key: str, tail: str = "") -> str:
    """Name, unit and which way is better: `ECE % ↓`."""
    arrow = next((arrow for start, arrow in ARROWS.items() if key.startswith(start)), "")
    name = NAMES.get(key) or metric_name(key)
    return " ".join(part for part in (f"{name}{tail}", "%" if _percent(key) else "", arrow) if part)


def _percent(key: str) -> bool:
    return is_percent(key) or key == CONFIDENCE


def show(key: str, value: float | None) -> str:
    """A value without its interval."""
    return format_number("accuracy" if key == CONFIDENCE else key, value)


def show_estimate(key: str, found: Estimate | None) -> str:
    """`95.3 (94.7-95.9)`; a dash where there is none."""
    if found is None:
        return MISSING
    interval = "" if found.low is None or found.high is None else f" ({show(key, found.low)}-{show(key, found.high)})"
    return show(key, found.value) + interval


def _scaled_keys(found: Shift) -> list[str]:
    return [] if found.temperature is None else [key for key in found.metrics if key.startswith(SCALED)]


def _heads(found: Shift) -> list[str]:
    return [*(head(key) for key in found.metrics), *(head(key, ", T") for key in _scaled_keys(found))]


def _numeric(columns: list[str], texts: int = 1) -> frozenset[int]:
    return frozenset(range(texts, len(columns)))


def mean_table(found: Shift) -> Table | None:
    """One line a severity: plain means over the corruptions, the clean set first."""
    if not found.cells:
        return None
    keys, scaled = list(found.metrics), _scaled_keys(found)
    rows = []
    for mean in found.means():
        cells = [show(key, mean.ensemble[key]) for key in keys] + [show(key, mean.temperature[key]) for key in scaled]
        rows.append([_severity(mean.severity), *cells])
    columns = ["Severity", *_heads(found)]
    return Table(columns, rows, _numeric(columns), frozenset({0}))


def _severity(severity: int) -> str:
    return str(severity) if severity else "0 (clean)"


def corruption_table(found: Shift, key: str) -> Table | None:
    """One line a corruption: one metric by severity, the clean set beside it, and the mean over the severities."""
    if not found.cells:
        return None
    worst, rows = found.worst(), []
    for name, kind in found.kinds.items():
        values = [found.cell(name, severity).scores.ensemble[key].value for severity in found.severities]
        clean = found.clean.scores.ensemble[key].value
        cells = [show(key, value) for value in (clean, *values, sum(values) / len(values))]
        rows.append([kind.title, kind.group, *cells])
    columns = [head(key), "Group", "Clean", *(str(severity) for severity in found.severities), "Mean"]
    strong = frozenset(i for i, name in enumerate(found.kinds) if name == worst and len(found.kinds) > 1)
    return Table(columns, rows, _numeric(columns, 2), strong)


def _line(found: Shift, start: list[str], scores: Scores) -> list[str]:
    cells = [show_estimate(key, scores.ensemble.get(key)) for key in found.metrics]
    return [*start, *cells, *(show_estimate(key, scores.temperature.get(key)) for key in _scaled_keys(found))]


def cell_table(found: Shift) -> Table | None:
    """Every number of every cell with its interval."""
    if not found.cells:
        return None
    rows = [_line(found, ["none", "0 (clean)", f"{found.clean.n:,}"], found.clean.scores)]
    for cell in found.cells:
        rows.append(_line(found, [found.kinds[cell.corruption].title, str(cell.severity), f"{cell.n:,}"], cell.scores))
    columns = ["Corruption", "Severity", "Rows", *_heads(found)]
    return Table(columns, rows, _numeric(columns), frozenset({0}))


def signed(key: str, value: float) -> str:
    """A change, with its sign; exactly nothing has none."""
    return ("" if value == 0.0 else "+" if value > 0.0 else MINUS) + show(key, abs(value))


def show_change(key: str, found: Estimate | None) -> str:
    """`−12.3 (−14.0 to −10.5)`; a dash where there is none."""
    if found is None or not math.isfinite(found.value):
        return MISSING
    interval = "" if found.low is None or found.high is None else f" ({signed(key, found.low)} to {signed(key, found.high)})"
    return signed(key, found.value) + interval


def change_table(found: Shift, keys: Sequence[str] = (), severity: int | None = None) -> Table | None:
    """The change of every cell from the clean rows; bold where accuracy fell by more than chance.

    Args:
        keys: report keys; none: all of them, and those after the temperature.
        severity: this one alone.
    """
    cells = [cell for cell in found.cells if severity in (None, cell.severity)]
    if not cells:
        return None
    scaled, rows, strong = [] if keys else _scaled_keys(found), [], set()
    for i, cell in enumerate(cells):
        change = cell.change or Scores({}, {})
        shown = [show_change(key, change.ensemble.get(key)) for key in keys or found.metrics]
        shown += [show_change(key, change.temperature.get(key)) for key in scaled]
        rows.append([found.kinds[cell.corruption].title, *([] if severity else [str(cell.severity)]), *shown])
        high = change.ensemble["accuracy"].high if change.ensemble else None
        strong |= {i} if high is not None and high < 0 else set()
    heads = [*(head(key) for key in keys or found.metrics), *(head(key, ", T") for key in scaled)]
    columns = ["Corruption", *([] if severity else ["Severity"]), *(name.replace(" %", ", points") for name in heads)]
    return Table(columns, rows, _numeric(columns), frozenset(strong))


def set_table(found: Shift) -> Table | None:
    """One line a second set, the clean test rows first."""
    if not found.sets:
        return None
    rows = [_line(found, [f"{found.dataset}:{found.split}, clean", f"{found.clean.n:,}"], found.clean.scores)]
    rows += [_line(found, [other.name, f"{other.n:,}"], other.scores) for other in found.sets]
    columns = ["Set", "Rows", *_heads(found)]
    return Table(columns, rows, _numeric(columns), frozenset({0}))


def kind_table(found: Shift) -> Table | None:
    """What every corruption is."""
    if not found.kinds:
        return None
    rows = [[kind.title, name, kind.group, kind.definition, kind.strengths] for name, kind in found.kinds.items()]
    return Table(["Corruption", "Name", "Group", "What it does", "Strength at severities 1 to 5"], rows)


def definition_table(found: Shift) -> Table:
    """What every number is."""
    rows = [[NAMES.get(key) or metric_name(key), definition] for key, definition in found.metrics.items()]
    if found.temperature is not None:
        told = f"Every logit divided by the run's own temperature, {found.temperature:.3f}, fitted on clean validation rows."
        rows.append(["…, T (after temperature)", told])
    level = f"{100 * found.confidence:.4g} %"
    rows.append(["In parentheses", f"{level} interval of the number; means over corruptions have none."])
    told = f"{level} interval by the paired bootstrap: both are scored on the same resamples of the same rows, so that it is "
    told += "narrower than two intervals suggest. Not corrected for the number of cells."
    rows.append(["Of a change", told])
    return Table(["Number", "Definition"], rows)


def provenance_table(found: Shift) -> Table:
    """Where the numbers come from."""
    return Table(["What", "Value"], [[key.replace("_", " "), _flat(value)] for key, value in found.provenance.items()])


def _flat(value: object) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def subtitle(found: Shift) -> str:
    """Data set, split, rows and members in one line."""
    members = f"{found.members} member{'s' if found.members > 1 else ''}"
    return f"{found.dataset}:{found.split} · {found.rows} · {members}"


def _tables(found: Shift) -> list[tuple[str, Table | None, str]]:
    """(heading, table, its style on the page)."""
    chosen = ["accuracy", find(found.metrics, "ece_"), "mutual_information_mean"] if found.cells else []
    return [
        ("Mean by severity", mean_table(found), "sticky"),
        *((f"{NAMES.get(key) or metric_name(key)} by corruption", corruption_table(found, key), "sticky") for key in chosen),
        ("Other sets", set_table(found), "sticky"),
        ("Change from the clean rows", change_table(found), "sticky"),
        ("Every number", cell_table(found), "sticky"),
        ("Corruptions", kind_table(found), "words"),
        ("Definitions", definition_table(found), "words"),
        ("Provenance", provenance_table(found), "facts words"),
    ]


def render_markdown(found: Shift) -> str:
    """The result as GitHub-flavoured Markdown."""
    headline = found.headline()
    blocks = [f"# {markdown.escape(found.title)}", markdown.escape(subtitle(found))]
    blocks += [f"**{markdown.escape(headline[0])}**", markdown.bullets([*headline[1:], *found.warnings])]
    for title, table, _ in _tables(found):
        if table is not None:
            blocks.append(markdown.section(f"## {title}", table))
    if found.notes:
        blocks += ["## Notes", markdown.bullets(found.notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(found: Shift) -> str:
    """The result as one self-contained HTML document."""
    first, *others = _tables(found)
    blocks = [page.head(found.title, subtitle(found), found.headline(), found.warnings)]
    blocks.append(page.section(first[0], first[1], first[2]))
    if found.cells:
        blocks += [f'<p class="soft">{READING}</p>', page.figures([_drawing(found, key) for key in found.metrics])]
    blocks += [page.section(title, table, style) for title, table, style in others]
    if found.notes:
        blocks.append("<h2>Notes</h2>\n" + page.bullets(found.notes))
    return page.page(found.title, blocks)


def _drawing(found: Shift, key: str) -> str:
    factor = 100.0 if _percent(key) else 1.0
    means = found.means()
    mean = [(float(m.severity), factor * m.ensemble[key]) for m in means]
    scaled = [(float(m.severity), factor * m.temperature[key]) for m in means] if key in _scaled_keys(found) else []
    lines = [
        [(float(s), factor * found.cell(name, s).scores.ensemble[key].value) for s in (0, *found.severities)]
        for name in found.kinds
    ]
    name = NAMES.get(key) or metric_name(key)
    drawing = figures.severity_svg(
        lines, mean, scaled, head(key), f"{name} by severity", from_zero=key not in ("accuracy", CONFIDENCE)
    )
    last = means[-1]
    detail = f"clean {show(key, means[0].ensemble[key])}, mean at severity {last.severity} {show(key, last.ensemble[key])}"
    return page.figure(name, detail, drawing)
