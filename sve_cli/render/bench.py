"""Markdown and HTML views of a benchmark's table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sve_cli.benchmark import REFERENCE, TRAINED, BenchRow, BenchTable, Spread, higher_is_better
from sve_cli.render import markdown, page
from sve_cli.render.figures import WIDTH, Frame, nice_ticks, svg
from sve_cli.render.tables import MISSING, Table, format_number

QUALITY = ("accuracy", "nll", "ece_top1_w", "brier", "ood_auroc_entropy", "ood_auroc_mutual_information")
SCALED = ("temperature.nll", "temperature.ece_top1_w")
_HEADS = {
    "accuracy": "Accuracy %", "nll": "NLL", "ece_top1_w": "ECE %", "brier": "Brier",
    "ood_auroc_entropy": "OOD AUROC %, entropy", "ood_auroc_mutual_information": "OOD AUROC %, mutual information",
    "temperature.nll": "NLL, temperature", "temperature.ece_top1_w": "ECE %, temperature",
    "mutual_information_mean": "Mutual information", "disagreement": "Disagreement %", "nll_soft": "NLL, human labels",
    "kl_soft": "KL, human labels", "brier_soft": "Brier, human labels",
}  # fmt: skip
_FURTHER = ("mutual_information_mean", "disagreement", "nll_soft", "kl_soft", "brier_soft")
_COSTS = {
    "train_time": "Training time", "train_flops": "Training FLOPs", "predict_flops": "Prediction FLOPs",
    "latency_1": "Latency, batch 1", "latency_32": "Latency, batch 32",
}  # fmt: skip


def render_markdown(table: BenchTable) -> str:
    """The whole benchmark as Markdown."""
    blocks = [f"# {_title(table)}", subtitle(table)]
    for heading, content in sections(table):
        blocks.append(markdown.section(heading, content))
    if table.notes:
        blocks.append(markdown.bullets([markdown.escape(note) for note in table.notes]))
    blocks.append("```\n" + "\n".join(table.commands) + "\n```")
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(table: BenchTable) -> str:
    """The whole benchmark as one HTML page, with the Pareto plots."""
    plots = [
        page.figure("Training cost against NLL", pareto_sentence(table, "train_time"), pareto_svg(table, "train_time")),
        page.figure("Prediction cost against NLL", pareto_sentence(table, "latency_32"), pareto_svg(table, "latency_32")),
    ]
    blocks = [page.head(_title(table), subtitle(table), [], []), page.figures(plots)]
    blocks += [page.section(heading, content, "sticky") for heading, content in sections(table)]
    blocks += ["<h2>Notes</h2>" if table.notes else "", page.bullets(table.notes)]
    blocks += ["<h2>Commands</h2>", page.bullets(table.commands)]
    return page.page(_title(table), blocks)


def sections(table: BenchTable) -> list[tuple[str, Table | None]]:
    """Headings with their tables, in reading order."""
    return [
        ("Quality", quality_table(table, QUALITY)),
        ("After temperature scaling", quality_table(table, SCALED)),
        ("Members and labels", quality_table(table, _FURTHER)),
        ("Paired differences", paired_table(table)),
        ("Costs", cost_table(table)),
        ("Parameters", parameter_table(table)),
    ]


def subtitle(table: BenchTable) -> str:
    """One line under the title: model, data, seeds."""
    rows = ", ".join(f"{n:,} {split}" for split, n in table.rows_of_data.items())
    seeds = sorted({len(row.seeds) for row in table.rows})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "" if seeds == [1] else "s"
    sets = f"; OOD: {', '.join(table.ood)}" if table.ood else ""
    return f"{table.model}; samples: {rows}{sets}; {counted} seed{plural} a row; mean ± standard deviation, worst seed in brackets."


def _title(table: BenchTable) -> str:
    return f"Benchmark: {table.task}"


def _key(row: BenchRow, stem: str) -> str | None:
    """The metric whose address starts with `stem` (the number of bins varies)."""
    return next((k for k in row.metrics if k == stem or (stem.endswith("_w") and k.startswith(stem))), None)


def quality_table(table: BenchTable, stems: Sequence[str]) -> Table | None:
    """Mean ± std [worst] of metrics; the best mean of each column is marked with an asterisk."""
    shown = [s for s in stems if any(_key(row, s) for row in table.rows)]
    if not shown:
        return None
    best = {s: _best(table, s) for s in shown}
    heads = [f"{_HEADS[s]} {'↑' if higher_is_better(s) else '↓' if higher_is_better(s) is False else ''}".strip() for s in shown]
    rows = []
    for row in table.rows:
        cells = [_cell(row, s) + ("*" if best[s] == row.name else "") for s in shown]
        rows.append([row.name, str(row.members), str(len(row.seeds)), *cells])
    return Table(["Row", "M", "Seeds", *heads], rows, frozenset(range(1, len(shown) + 3)))


def _best(table: BenchTable, stem: str) -> str:
    better = higher_is_better(stem)
    found = [(row.metrics[k].mean, row.name) for row in table.rows if (k := _key(row, stem))]
    if better is None or len(found) < 2:
        return ""
    return (max if better else min)(found)[1]


def _cell(row: BenchRow, stem: str) -> str:
    key = _key(row, stem)
    return MISSING if key is None else format_spread(key, row.metrics[key])


def format_spread(key: str, spread: Spread) -> str:
    """'95.9 ± 0.2 [95.6]'; only the value for one seed."""
    name = "auroc_ood" if key.startswith("ood_auroc") else key.rpartition(".")[2]
    value = format_number(name, spread.mean).removesuffix(" %")
    if spread.std is None:
        return value
    std, worst = (format_number(name, number).removesuffix(" %") for number in (spread.std, spread.worst))
    return f"{value} ± {std} [{worst}]"


def paired_table(table: BenchTable) -> Table | None:
    """Differences to the reference row with their paired intervals over test samples."""
    if not table.paired or not table.paired["rows"]:
        return None
    rows = []
    for name, found in table.paired["rows"].items():
        for key, d in found["differences"].items():
            inside = d["low"] <= 0.0 <= d["high"]
            stem = key.rpartition(".")[2]
            better = higher_is_better(stem)
            verdict = "tie" if inside else ("better" if (d["difference"] > 0) == better else "worse")
            shown = [f"{_signed(stem, d[k])}" for k in ("difference", "low", "high")]
            rows.append([name, key, f"{shown[0]} ({shown[1]} to {shown[2]})", f"{verdict} than {table.paired['reference']}"
                         if verdict != "tie" else "tie"])  # fmt: skip
    return Table(["Row", "Report key", f"Row minus {table.paired['reference']}", "Verdict"], rows, frozenset({2}))


def _signed(key: str, value: float) -> str:
    text = format_number(key, abs(value)).removesuffix(" %")
    return f"{'−' if value < 0 else '+'}{text}"


def cost_table(table: BenchTable) -> Table | None:
    """Measured costs, relative to `single`."""
    measured = [key for key in _COSTS if any(key in row.costs for row in table.rows)]
    heads = ["Row", *(f"{_COSTS[k]} (× {REFERENCE})" for k in measured), "Training of the runs, s", "Peak memory of the runs, MB"]
    rows = []
    for row in table.rows:
        ratios = [f"{row.costs[k]:.2f}" if k in row.costs else MISSING for k in measured]
        rows.append([row.name, *ratios, f"{row.costs['train_seconds']:,.0f}", f"{row.costs['peak_memory_mb']:,.0f}"])
    return Table(heads, rows, frozenset(range(1, len(heads))))


def parameter_table(table: BenchTable) -> Table | None:
    """Trained numbers by role, the extra ones as a share of the checkpoint, stored bytes, learning rates."""
    roles = [role for role in TRAINED if any(row.parameters.get(role) for row in table.rows)]
    rows = []
    for row in table.rows:
        counts = [f"{int(row.parameters.get(role, 0)):,}" for role in roles]
        extra = f"{100 * row.parameters['extra_fraction']:.2f} %"
        rows.append([row.name, *counts, extra, f"{row.parameters['stored_bytes'] / 1e6:,.1f}", "; ".join(row.notes) or MISSING])
    heads = ["Row", *(role.capitalize() for role in roles), "Extra, heads apart", "Stored beside checkpoint, MB", "Learning rates"]
    return Table(heads, rows, frozenset(range(1, len(heads) - 1)))


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points that no other point beats in both cost and NLL, by cost."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _points(table: BenchTable, cost: str) -> list[tuple[float, float, str]]:
    return [
        (row.costs[cost], row.metrics["nll"].mean, row.name) for row in table.rows if row.costs.get(cost) and "nll" in row.metrics
    ]


def pareto_sentence(table: BenchTable, cost: str) -> str:
    """Which rows lie on the front."""
    points = _points(table, cost)
    if len(points) < 2:
        return ""
    return f"{_COSTS[cost]} relative to {REFERENCE}. On the front: {', '.join(name for _, _, name in _front(points))}."


def pareto_svg(table: BenchTable, cost: str) -> str:
    """Cost (logarithmic) against NLL, with the front as a line; empty for fewer than two points."""
    points = _points(table, cost)
    if len(points) < 2:
        return ""
    logs = [math.log10(x) for x, _, _ in points]
    values = [y for _, y, _ in points]
    pad_x, pad_y = 0.1 * (max(logs) - min(logs) or 1), 0.12 * (max(values) - min(values) or 1)
    frame = Frame(
        (46, 14, WIDTH - 8, 220), (min(logs) - pad_x, max(logs) + 3 * pad_x), (min(values) - pad_y, max(values) + pad_y)
    )
    for tick in nice_ticks(min(values), max(values), 4):
        frame.line((frame.x_range[0], tick), (frame.x_range[1], tick), "grid")
        frame.text(frame.left - 6, frame.y(tick) + 4, f"{tick:g}", anchor="end")
    for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30):
        if frame.x_range[0] <= math.log10(tick) <= frame.x_range[1]:
            frame.text(frame.x(math.log10(tick)), frame.bottom + 16, f"× {tick:g}")
    front = _front(points)
    frame.path([(math.log10(x), y) for x, y, _ in front], "stroke-id")
    taken: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda p: p[1]):
        at = (math.log10(x), y)
        on_front = (x, y, name) in front
        frame.dot(at, "dot-id") if on_front else frame.square(at, "dot-ood")
        top = frame.y(y) + 4
        while any(abs(top - t) < 12 and abs(frame.x(at[0]) - left) < 95 for left, t in taken):
            top -= 12
        taken.append((frame.x(at[0]), top))
        right = frame.x(at[0]) > frame.right - 90
        frame.text(frame.x(at[0]) + (-8 if right else 8), top, name, "value", "end" if right else "start")
    frame.text(frame.left, 10, "NLL", anchor="start")
    frame.text((frame.left + frame.right) / 2, frame.bottom + 32, f"{_COSTS[cost]}, relative to {REFERENCE}")
    return svg(260, f"{_COSTS[cost]} against NLL", frame.parts)
