"""`sve compare`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.gate_options import ProbColumns
from sve_cli.commands.options import Json, name_list
from sve_cli.console import Console

WIDE = 142  # columns of the whole table


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", help="Runs or predictions files; the others are compared with the first.")
    ],
    metrics: Annotated[list[str] | None, typer.Option("--metrics", help="Metrics, separated by commas; default: all.")] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Bootstrap resamples behind the intervals.")] = 2000,
    permutations: Annotated[int, typer.Option(min=0, help="Permutations behind the p-values; 0: none.")] = 2000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")] = 0.95,
    scaled: Annotated[bool, typer.Option("--scaled", help="Also after temperature scaling of both.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    prob_columns: ProbColumns = None,
    out: Annotated[Path | None, typer.Option(help="Write comparison.json, .md and .html to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs on the same test samples: differences with intervals, p-values and a verdict for each metric."""
    from sve_cli.render.comparison import difference_table, groups, narrow_tables
    from sve_cli.rundir import require_writable
    from sve_cli.workflows.compare import Options, n_steps, open_systems, write_comparison
    from sve_cli.workflows.compare import compare as compare_systems

    console = Console(json_mode=as_json)
    if out is not None:
        require_writable(out)
    systems = open_systems(runs, name_list(prob_columns))
    options = Options(name_list(metrics), bootstrap, permutations, confidence, scaled, seed)
    with console.progress(n_steps(systems, scaled), "Comparing") as advance:
        comparison = compare_systems(systems, options, advance)
    wide = shutil.get_terminal_size(fallback=(WIDE, 24)).columns >= WIDE  # a pipe is as wide as it needs to be
    for pair in comparison.pairs:
        for heading, rows in groups(pair):
            title = f"A = {comparison.reference}, B = {pair.name}, {pair.n:,} samples"
            for i, shown in enumerate([difference_table(rows)] if wide else narrow_tables(rows)):
                console.table("" if i else f"{title}. {heading}".rstrip(". "), shown.columns, shown.rows)
        for sentence in pair.sentences:
            console.say(sentence)
        for note in pair.notes:
            console.warn(note)
    if out is not None:
        console.say(f"Report: {write_comparison(comparison, out)}")
    if as_json:
        console.json(comparison.document())
