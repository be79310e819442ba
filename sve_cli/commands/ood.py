"""`sve ood`."""

from __future__ import annotations

from typing import Annotated

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError


def ood(
    run: Run = None,
    sets: Annotated[list[str] | None, typer.Option("--sets", help="Sets: names, paths or set:split, separated by commas.")] = None,
    scores: Annotated[
        list[str] | None, typer.Option("--scores", help="Scores, separated by commas; default: the recipe's.")
    ] = None,
    near: Annotated[list[str] | None, typer.Option("--near", help="Sets to take the mean of as near ones.")] = None,
    far: Annotated[list[str] | None, typer.Option("--far", help="Sets to take the mean of as far ones.")] = None,
    as_json: Json = False,
) -> None:
    """How well a run tells out-of-distribution inputs apart."""
    from sve_cli.registry import OOD_SCORES
    from sve_cli.render.decisions import group_tables
    from sve_cli.render.tables import ood_table
    from sve_cli.rundir import RunDir
    from sve_cli.workflows.evaluate import evaluate, require_ood
    from sve_cli.workflows.session import run_recipe

    console = Console(json_mode=as_json)
    found = RunDir.given(run)
    names = name_list(sets)
    groups = {name: group for group, given in (("near", near), ("far", far)) for name in name_list(given)}
    if both := sorted({*name_list(near)} & {*name_list(far)}):
        raise SveError(f"'{both[0]}' is given with --near and with --far.", "Name it with one of them.")
    require_ood([*names, *groups, *run_recipe(found).data.ood])
    wanted = name_list(scores)
    for name in wanted:
        OOD_SCORES[name]
    console.say(f"Run: {found.path}")
    changes = {"ood_scores": wanted} if wanted else {}
    folder, report = evaluate(found, console, ood=names, changes=changes, groups=groups, command=command_line())
    for one in report.ood:
        shown, group = ood_table(one), f"{one.group}; " if one.group else ""
        console.table(f"{one.name} ({group}{one.n_id:,} in distribution, {one.n_ood:,} out)", shown.columns, shown.rows)
    for title, table in group_tables(report):
        console.table(title, table.columns, table.rows)
    console.say(f"Report: {folder / 'report.html'}")
    if as_json:
        document = {"run": str(found.path), "evaluation": str(folder), "ood": report.ood, "groups": report.ood_groups()}
        console.json(document)
