"""`sve members`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.gate_options import ProbColumns
from sve_cli.commands.options import Json, name_list
from sve_cli.console import Console

WIDE = 110  # columns of the tables with their intervals


def members(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run's folder or a predictions file; default: the newest complete run.", show_default=False),
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metrics", help="Metrics, separated by commas; default: all.")] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Bootstrap resamples behind the intervals.")] = 500,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples and of the subsets.")] = 0,
    prob_columns: ProbColumns = None,
    out: Annotated[Path | None, typer.Option(help="Write members.json, .md and .html to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """How many members a run needs: every metric for 1 to all of its members."""
    from sve_cli.comparison import n_subsets
    from sve_cli.render.members import curve_table, size_tables
    from sve_cli.rundir import RunDir, require_writable
    from sve_cli.workflows.compare import open_system
    from sve_cli.workflows.members import members as count_members
    from sve_cli.workflows.members import write_members

    console = Console(json_mode=as_json)
    if out is not None:
        require_writable(out)
    system = open_system(run or RunDir.given(None).path, prob_columns=name_list(prob_columns))
    console.say(f"Members of: {system.name}")
    with console.progress(n_subsets(system.test.n_members), "Subsets of members") as advance:
        found = count_members(system, name_list(metrics), bootstrap, confidence, seed, advance)
    wide = shutil.get_terminal_size(fallback=(WIDE, 24)).columns >= WIDE  # a pipe is as wide as it needs to be
    for heading, shown in size_tables(found) or [("Every metric", curve_table(found.curves))]:
        rows = shown.rows if wide else [[cell.partition(" (")[0] for cell in row] for row in shown.rows]
        console.table(f"{found.name} on {found.dataset}. {heading}", shown.columns, rows)
    for sentence in found.sentences:
        console.say(sentence)
    for note in found.notes:
        console.warn(note)
    if out is not None:
        console.say(f"Report: {write_members(found, out)}")
    if as_json:
        console.json(found)
