"""`sve diversity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console

PAIRS_SHOWN = 10


def diversity(
    run: Run = None,
    samples: Annotated[int, typer.Option("--samples", min=20, help="Most samples of the test split and of each OOD set.")] = 2000,
    train_samples: Annotated[
        int, typer.Option("--train-samples", min=10, help="Most training samples that distances are measured to.")
    ] = 10_000,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="An out-of-distribution set besides the recipe's; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go; default: below the run.")] = None,
    as_json: Json = False,
) -> None:
    """How unlike a run's members are, and whether they disagree most far from the training data."""
    from sve_cli.render.diversity import distance_table, measure_table, pair_table
    from sve_cli.rundir import RunDir, require_writable
    from sve_cli.workflows.diversity import diversity as measure

    console = Console(json_mode=as_json)
    if out is not None:
        require_writable(out)
    found = RunDir.given(run)
    console.say(f"Run: {found.path}")
    folder, result = measure(
        found, console, samples=samples, train_samples=train_samples, ood=name_list(ood), out=out, command=command_line()
    )
    for sentence in [*result.headline, *result.notes]:
        console.say(sentence)
    console.table(result.title, measure_table(result).columns, measure_table(result).rows)
    if result.members * (result.members - 1) // 2 <= PAIRS_SHOWN:
        console.table("Every pair", pair_table(result).columns, pair_table(result).rows)
    distance = distance_table(result)
    if distance:
        console.table("Rank correlation with the distance to the training features", distance.columns, distance.rows)
    console.say(f"Report: {folder / 'diversity.html'}")
    if as_json:
        console.json({"run": str(found.path), "folder": str(folder), "diversity": result.document()})
