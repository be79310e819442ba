"""Tables of what lies behind the averages: other numbers of bins, classes, slices."""

from __future__ import annotations

from sve_cli.render.tables import MISSING, Table, find_key, format_metric, format_number, metric_header
from sve_cli.report import Report, Slice

MOST_CLASSES, MOST_SLICES = 200, 25
SHOWN = 10  # lines of a long table before the rest is folded
LEVEL = 0.05
CLASS_ERROR = "ece_class_w"


def bins_table(report: Report) -> Table | None:
    """The calibration error by the number of bins."""
    if not report.bin_choices:
        return None
    rows = [[str(b.bins), *(format_number("ece_", value) for value in (b.width, b.mass))] for b in report.bin_choices]
    key = find_key(report.rows, "ece_top1_w") or ""
    strong = frozenset(i for i, b in enumerate(report.bin_choices) if key == f"ece_top1_w{b.bins}")
    return Table(["Bins", "ECE, equal width % ↓", "ECE, equal mass % ↓"], rows, frozenset({1, 2}), strong)


def class_table(report: Report) -> Table | None:
    """One line a class, the lowest F1 first."""
    if not report.per_class:
        return None
    shown = sorted(report.per_class, key=lambda c: (c.f1 is None, c.f1 or 0.0))[:MOST_CLASSES]
    rows = [
        [
            c.name,
            f"{c.support:,}",
            *(format_number("accuracy", v) for v in (c.precision, c.recall, c.f1)),
            format_number(CLASS_ERROR, c.ece),
        ]
        for c in shown
    ]
    columns = ["Class", "Samples", "Precision % ↑", "Recall % ↑", "F1 % ↑", "ECE, one against the rest % ↓"]
    return Table(columns, rows, frozenset(range(1, 6)))


def class_note(report: Report) -> str:
    """What the class table leaves out."""
    more = len(report.per_class) - MOST_CLASSES
    return f"The {MOST_CLASSES} classes of lowest F1; {more:,} more stand in report.json." if more > 0 else ""


def slice_table(report: Report) -> Table | None:
    """One line a slice that is large enough, largest doubt first."""
    judged = [part for part in report.slices if part.metrics]
    if not judged:
        return None
    keys = list(judged[0].metrics)
    heads = [metric_header(key, judged[0].metrics[key]) for key in keys]
    rows = [_slice(part, keys) for part in judged[:MOST_SLICES]]
    strong = frozenset(i for i, part in enumerate(judged[:MOST_SLICES]) if part.p_worse < LEVEL)
    return Table(["Slice", "Samples", *heads, "p (worse than the rest)"], rows, frozenset(range(1, len(keys) + 3)), strong)


def _slice(part: Slice, keys: list[str]) -> list[str]:
    p = "< 0.001" if part.p_worse < 0.001 else f"{part.p_worse:.3f}"
    name, values = f"{part.column} = {part.value}", [format_metric(key, part.metrics.get(key)) for key in keys]
    return [name, f"{part.n:,}", *values, p if part.worse else MISSING]


def slice_note(report: Report) -> str:
    """What the p means, and which slices the table leaves out."""
    judged = sum(1 for part in report.slices if part.metrics)
    small = [part for part in report.slices if not part.metrics]
    sentences = []
    if judged:
        sentences.append(
            "p of no worse than the rest: the smallest of those of accuracy, NLL and ECE, corrected for all slices and the three "
            "numbers (Holm). A slice of a true class is not expected to be calibrated by itself."
        )
    if judged > MOST_SLICES:
        sentences.append(f"{judged - MOST_SLICES:,} more slices stand in report.json.")
    if small:
        names = ", ".join(f"{part.column} = {part.value} ({part.n})" for part in small[:8]) + (", …" if len(small) > 8 else "")
        sentences.append(f"Too small to judge (fewer than 30 samples): {names}.")
    return " ".join(sentences)
