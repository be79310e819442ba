"""Markdown and HTML views of a benchmark's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sve_cli.benchmark import BOTH_SCALED, REFERENCE, TRAINED, BenchRow, BenchTable, Spread, higher_is_better
from sve_cli.render import markdown, page
from sve_cli.render.pareto import Point, front, pareto_svg
from sve_cli.render.tables import MISSING, Table, format_number

QUALITY = ("accuracy", "nll", "ece_top1_w", "brier")
OOD = ("ood_auroc_entropy", "ood_auroc_mutual_information", "ood_auroc_max_probability", "ood_auroc_energy")
SCALED = ("temperature.accuracy", "temperature.nll", "temperature.ece_top1_w", "temperature.brier")
VECTOR = ("vector.accuracy", "vector.nll", "vector.ece_top1_w", "vector.brier")
MEMBERS = ("mutual_information_mean", "disagreement")
HUMAN = ("nll_soft", "kl_soft", "brier_soft")
_HEADS = {
    "accuracy": "Accuracy %", "nll": "NLL", "ece_top1_w": "ECE %", "brier": "Brier", "ood_auroc_entropy": "Entropy",
    "ood_auroc_mutual_information": "Mutual information", "ood_auroc_max_probability": "Maximum probability",
    "ood_auroc_energy": "Energy", "mutual_information_mean": "Mutual information", "disagreement": "Disagreement %",
    "nll_soft": "NLL", "kl_soft": "KL", "brier_soft": "Brier",
    "auroc_ood": "AUROC %",
}  # fmt: skip
_COSTS = {
    "train_time": "Training time", "train_flops": "Training FLOPs", "predict_flops": "Prediction FLOPs",
    "latency_1": "Latency, batch 1", "latency_32": "Latency, batch 32",
}  # fmt: skip
_ROLES = {
    "sigma": "Σ", "band": "Bands", "lora": "LoRA", "scale": "Scales", "bias": "Biases", "norm": "Norms", "head": "Heads",
}  # fmt: skip
_PLOTS = {"train_time": "Training cost against NLL", "latency_32": "Prediction cost against NLL"}
_SPACE = "\N{NO-BREAK SPACE}"
SPLIT = " (seeds disagree)"


def render_markdown(table: BenchTable) -> str:
    """The whole benchmark as Markdown."""
    blocks = [f"# {markdown.escape(_title(table))}", markdown.escape(subtitle(table))]
    for heading, content in sections(table):
        blocks.append(markdown.section(f"## {heading}", content))
    if table.notes:
        blocks += ["## Notes", markdown.bullets(table.notes)]
    fence = "~~~~" if any("```" in command for command in table.commands) else "```"
    blocks += ["## Commands", f"{fence}\n" + "\n".join(table.commands) + f"\n{fence}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_html(table: BenchTable) -> str:
    """The whole benchmark as one HTML page, with the Pareto plots."""
    plots = [
        page.figure(
            caption, pareto_sentence(table, cost), pareto_svg(points(table, cost), f"{_COSTS[cost]}, × {REFERENCE}", spreads(table))
        )
        for cost, caption in _PLOTS.items()
    ]
    blocks = [page.head(_title(table), subtitle(table), [], []), page.figures(plots)]
    blocks += [page.section(heading, content, "sticky") for heading, content in sections(table)]
    blocks += ["<h2>Notes</h2>" if table.notes else "", page.bullets(table.notes)]
    blocks += ["<h2>Commands</h2>", page.code(table.commands)]
    return page.page(_title(table), blocks)


def sections(table: BenchTable) -> list[tuple[str, Table | None]]:
    """Headings with their tables, in reading order."""
    sets = "" if len(table.ood) == 1 else f", mean of {len(table.ood)} sets"
    return [
        ("Quality", quality_table(table, QUALITY)),
        (f"Out-of-distribution detection: AUROC %{sets}", quality_table(table, OOD)),
        ("After temperature scaling", quality_table(table, SCALED)),
        ("After vector scaling", quality_table(table, VECTOR)),
        ("Members", quality_table(table, MEMBERS)),
        ("Against human label distributions", quality_table(table, HUMAN)),
        ("Paired differences", paired_table(table)),
        ("Costs", cost_table(table)),
        ("Parameters", parameter_table(table)),
    ]


def subtitle(table: BenchTable) -> str:
    """What the table is about and how to read it: model, data, seeds, signs."""
    rows = ", ".join(f"{n:,} {split}" for split, n in table.rows_of_data.items()) if table.one_test else "each row its own"
    seeds = sorted({len(row.seeds) for row in table.rows})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "" if seeds == [1] else "s"
    sets = f"; OOD: {', '.join(table.ood)}" if table.ood else ""
    spread = "" if seeds == [1] else " Mean ± standard deviation, worst seed in parentheses."
    best = " An asterisk marks the best mean of a column." if len(table.rows) > 1 and table.one_test else ""
    return f"{table.model}; samples: {rows}{sets}; {counted} seed{plural} a row.{spread}{best}"


def _title(table: BenchTable) -> str:
    return f"Benchmark: {table.task}"


def _key(row: BenchRow, stem: str) -> str | None:
    """The metric whose address starts with `stem` (the number of bins varies)."""
    return next((k for k in row.metrics if k == stem or (stem.endswith("_w") and k.startswith(stem))), None)


def quality_table(table: BenchTable, stems: Sequence[str]) -> Table | None:
    """Mean ± std (worst) of metrics; the best mean of each column is marked with an asterisk."""
    shown = [s for s in stems if any(_key(row, s) for row in table.rows)]
    if not shown:
        return None
    best = {s: _best(table, s) for s in shown}
    rows = [
        [row.name, str(row.members), str(len(row.seeds)), *(_cell(row, s, row.name in best[s]) for s in shown)]
        for row in table.rows
    ]
    return Table(["Row", "M", "Seeds", *map(_head, shown)], rows, frozenset(range(1, len(shown) + 3)))


def _head(key: str) -> str:
    """A metric as people call it, with its unit and which way is better; the number of bins varies."""
    stem = key.removeprefix("temperature.").removeprefix("vector.").rstrip("0123456789")
    better = higher_is_better(key)
    return f"{_HEADS.get(stem, stem)} {'' if better is None else '↑' if better else '↓'}".strip()


def _best(table: BenchTable, stem: str) -> set[str]:
    """Names of the rows with the best mean; none without a direction, or with nothing to compare."""
    better = higher_is_better(stem)
    found = {row.name: row.metrics[k].mean for row in table.rows if (k := _key(row, stem))}
    if better is None or len(found) < 2 or not table.one_test:
        return set()
    top = (max if better else min)(found.values())
    return {name for name, mean in found.items() if mean == top}


def _cell(row: BenchRow, stem: str, best: bool) -> str:
    key = _key(row, stem)
    return MISSING if key is None else format_spread(key, row.metrics[key], "*" if best else "")


def format_spread(key: str, spread: Spread, mark: str = "") -> str:
    """'95.9* ± 0.2 (95.6)'; only the value for one seed. `mark` stands behind the mean."""
    name = "auroc_ood" if key.startswith("ood_auroc") else key.rpartition(".")[2]
    value = format_number(name, spread.mean) + mark
    if spread.std is None:
        return value
    worst = "" if spread.worst is None else f" ({format_number(name, spread.worst)})"
    return f"{value} ± {format_number(name, spread.std)}{worst}"


def paired_table(table: BenchTable) -> Table | None:
    """Differences to the reference row with their paired intervals over test samples, metric by metric."""
    if not table.paired or not table.paired["rows"]:
        return None
    reference = table.paired["reference"]
    order = {row.name: i for i, row in enumerate(table.rows)}
    found = dict(sorted(table.paired["rows"].items(), key=lambda item: order.get(item[0], len(order))))
    keys = dict.fromkeys(key for row in found.values() for key in row["differences"])
    rows: list[list[str]] = []
    strong: set[int] = set()
    for key in keys:
        for name in found:
            if (d := found[name]["differences"].get(key)) is None:
                continue
            word = verdict(d)
            strong |= {len(rows)} if word != "tie" else set()
            difference, low, high = (_signed(key.rpartition(".")[2], d[k]) for k in ("difference", "low", "high"))
            rows.append([_metric(key), name, f"{difference} ({low} to {high})", word + (SPLIT if seeds_disagree(d) else "")])
    return Table(["Metric", "Row", f"Row minus {reference}", "Verdict"], rows, frozenset({2}), frozenset(strong))


def _metric(key: str) -> str:
    """A report key as people call it: 'ECE % ↓, row temperature-scaled, reference not', 'AUROC % ↑, entropy, digits:ood'."""
    scaled = {"temperature": ", row temperature-scaled, reference not", BOTH_SCALED: ", both temperature-scaled"}
    where = scaled.get(key.partition(".")[0], "")
    if key.startswith("ood."):
        name, score, _ = key[4:].rsplit(".", 2)
        where = f", {score.replace('_', ' ')}, {name}"
    return _head(key.rpartition(".")[2]) + where


def verdict(difference: dict[str, Any]) -> str:
    """What the paired interval and the seeds say of the row, which is B there: 'better', 'worse' or 'tie'."""
    side, _, word = str(difference["verdict"]).partition(" ")
    opposite = {"better": "worse", "higher": "lower"}
    return "tie" if side == "tie" or seeds_disagree(difference) else word if side == "B" else opposite[word]


def seeds_disagree(difference: dict[str, Any]) -> bool:
    """Whether the interval leaves 0 out, but some seed's difference is not on the same side."""
    beyond = not str(difference["verdict"]).startswith("tie")
    return beyond and not all(one * difference["difference"] > 0.0 for one in difference.get("by_seed", ()))


def _signed(key: str, value: float) -> str:
    text = format_number(key, abs(value))
    return text if text == MISSING else f"{'−' if value < 0 else '+'}{text}"


def cost_table(table: BenchTable) -> Table | None:
    """Measured costs, relative to `single`, and what the runs themselves took."""
    measured = [key for key in _COSTS if any(key in row.costs for row in table.rows)]
    own = ["Runs: training, s", "Runs: peak memory, MB"]
    heads = ["Row", *(f"{_COSTS[k]}, ×{_SPACE}{REFERENCE}" for k in measured), *own]
    rows = []
    for row in table.rows:
        ratios = [f"{row.costs[k]:.2f}" if k in row.costs else MISSING for k in measured]
        seconds = row.costs["train_seconds"]
        shown = f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"
        rows.append([row.name, *ratios, shown, f"{row.costs['peak_memory_mb']:,.0f}"])
    return Table(heads, rows, frozenset(range(1, len(heads))))


def parameter_table(table: BenchTable) -> Table | None:
    """Trained numbers by role, the extra ones as a share of the checkpoint, stored bytes (and those of cached factors), notes."""
    roles = [role for role in TRAINED if any(row.parameters.get(role) for row in table.rows)]
    noted = any(row.notes for row in table.rows)
    sizes = {"stored_bytes": "Stored, MB"}
    cached = [row for row in table.rows if row.parameters.get("sigma")]  # older results do not say how much
    if cached and all("factor_bytes" in row.parameters for row in cached):
        sizes["factor_bytes"] = "Factors in the cache, MB"
    rows = []
    for row in table.rows:
        counts = [f"{int(row.parameters.get(role, 0)):,}" for role in roles]
        extra = row.parameters.get("extra_fraction")
        stored = [MISSING if (size := row.parameters.get(key)) is None else _megabytes(size) for key in sizes]
        shares = [MISSING if extra is None else f"{100 * extra:.2f}", *stored]
        rows.append([row.name, *counts, *shares, *(["; ".join(row.notes) or MISSING] if noted else [])])
    heads = ["Row", *(_ROLES.get(role, role.capitalize()) for role in roles), "Extra without heads, %", *sizes.values()]
    return Table([*heads, "Notes"] if noted else heads, rows, frozenset(range(1, len(heads))))


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size >= 1e7 else f"{size / 1e6:.3f}"


def points(table: BenchTable, cost: str) -> list[Point]:
    """(cost, NLL, row) of every row that has both; none where the rows' NLL do not compare."""
    if not table.one_test:
        return []
    rows = [row for row in table.rows if row.costs.get(cost) and "nll" in row.metrics]
    return [(row.costs[cost], row.metrics["nll"].mean, row.name) for row in rows]


def spreads(table: BenchTable) -> dict[str, float]:
    """Row -> standard deviation of its NLL over the seeds, where there are several."""
    found = {row.name: row.metrics["nll"].std for row in table.rows if "nll" in row.metrics}
    return {name: std for name, std in found.items() if std is not None}


def pareto_sentence(table: BenchTable, cost: str) -> str:
    """Which rows lie on the front."""
    found = points(table, cost)
    if len(found) < 2:
        return ""
    names = ", ".join(name for _, _, name in front(found))
    whiskers = " Whiskers: ± one standard deviation over the seeds." if spreads(table) else ""
    return f"Lower left is better. Dots: rows that no other row beats in both ({names}).{whiskers}"
