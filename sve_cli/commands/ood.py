"""`sve ood`."""

from __future__ import annotations

from typing import Annotated

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console


def ood(
    run: Run = None,
    sets: Annotated[list[str] | None, typer.Option("--sets", help="Sets: names, paths or set:split, separated by commas.")] = None,
    scores: Annotated[
        list[str] | None, typer.Option("--scores", help="Scores, separated by commas; default: the recipe's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How well a run tells out-of-distribution inputs apart."""
    from sve_cli.registry import OOD_SCORES
    from sve_cli.rundir import RunDir, runs_root
    from sve_cli.workflows.evaluate import evaluate, require_ood
    from sve_cli.workflows.session import run_recipe

    console = Console(json_mode=as_json)
    found = RunDir.open(run) if run is not None else RunDir.newest(runs_root())
    names = name_list(sets)
    require_ood([*names, *run_recipe(found).data.ood])
    wanted = name_list(scores)
    for name in wanted:
        OOD_SCORES[name]
    console.say(f"Run: {found.path}")
    changes = {"ood_scores": wanted} if wanted else {}
    folder, report = evaluate(found, console, ood=names, changes=changes, command=command_line())
    keys = ["auroc_ood", "aupr_ood", "aupr_id", "fpr95_ood_positive", "fpr95_id_positive"]
    for table in report.ood:
        rows = [[score, *(f"{100 * metrics[k].value:.2f}" for k in keys)] for score, metrics in table.scores.items()]
        console.table(f"{table.name}: {table.n_id} in-distribution, {table.n_ood} out (percent)", ["score", *keys], rows)
    console.say(f"Report: {folder / 'report.html'}")
    if as_json:
        console.json({"run": str(found.path), "evaluation": str(folder), "ood": report.ood})
