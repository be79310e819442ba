"""`sve shift`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError


def shift(
    run: Run = None,
    corruptions: Annotated[
        list[str] | None,
        typer.Option("--corruptions", help="Names or groups, separated by commas; all (default): all that suit the data; none."),
    ] = None,
    severities: Annotated[str, typer.Option("--severities", help="Of 1 to 5, separated by commas.")] = "1,2,3,4,5",
    sets: Annotated[
        list[str] | None, typer.Option("--sets", help="Other labelled sets of the same classes: names, paths or set:split.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most rows of the test split and of each set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where everything goes; default: below the run.")] = None,
    as_json: Json = False,
) -> None:
    """What accuracy and calibration become on corrupted inputs. A command that was stopped goes on when it is repeated."""
    from sve_cli.render.shift import change_table, mean_table, set_table, subtitle
    from sve_cli.rundir import RunDir
    from sve_cli.shift import find
    from sve_cli.workflows.shift import shift as measure

    console = Console(json_mode=as_json)
    found = RunDir.given(run)
    levels = [_severity(part) for part in name_list([severities])]
    console.say(f"Run: {found.path}")
    names = name_list(corruptions) or ["all"]
    folder, result = measure(
        found, console, corruptions=names, severities=levels, sets=name_list(sets), limit=limit, out=out, command=command_line()
    )
    for sentence in [*result.headline(), *result.notes]:
        console.say(sentence)
    if (means := mean_table(result)) is not None:
        count = f"mean over {len(result.kinds)} corruptions" if len(result.kinds) > 1 else next(iter(result.kinds))
        console.table(f"{result.title}: {count}", means.columns, means.rows)
    if result.cells:
        keys, worst = ("accuracy", "nll", find(result.metrics, "ece_")), result.severities[-1]
        if (changes := change_table(result, keys, worst)) is not None:
            console.table(f"Change from the clean rows at severity {worst} (interval)", changes.columns, changes.rows)
    if (others := set_table(result)) is not None:
        rows = [[cell.partition(" (")[0] for cell in row] for row in others.rows]  # with intervals the lines are too long
        console.table("Other sets", others.columns, rows)
    console.say(f"Rows: {subtitle(result)}")
    console.say(f"Report: {folder / 'shift.html'}")
    if as_json:
        console.json({"run": str(found.path), "folder": str(folder), "shift": result.document()})


def _severity(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,9}", text):
        raise SveError(f"'{text}' is no severity.", "Use whole numbers from 1 to 5: --severities 1,3,5.")
    return int(text)
