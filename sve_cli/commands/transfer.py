"""`sve transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json, Overrides, command_line
from sve_cli.console import Console
from sve_cli.errors import SveError


def transfer(
    run: Annotated[Path, typer.Argument(help="The finished run whose members are taken.")],
    recipe: Annotated[
        str, typer.Argument(help="A recipe for the new data: a file or the name of a shipped one. The method stays the run's.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="The new run's folder; default: runs/<recipe>-transfer-….")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Rows per split, for a quick try; marked as not comparable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Keep what a run trained, refit only its heads on other data, and evaluate there.

    The method and its parameters are the run's; of the recipe's only method.members counts: the first so many of the run's
    members are taken, and all it has where the recipe has more.
    """
    from sve_cli.recipe import load_recipe
    from sve_cli.rundir import RunDir

    console = Console(json_mode=as_json)
    typed = {override.partition("=")[0].strip() for override in overrides or []}
    if others := sorted(key for key in typed if key.startswith("method.") and key != "method.members"):
        raise SveError(f"{others[0]} changes nothing: a transfer keeps the method of the run.", "Leave it out of the command.")
    source, loaded = RunDir.open(run), load_recipe(recipe, overrides or [])
    from sve_cli.workflows.transfer import transfer as run_transfer

    done, report = run_transfer(
        source, loaded, console, out=out, limit=limit, overwrite=overwrite, most_members="method.members" not in typed,
        command=command_line(),
    )  # fmt: skip
    latest = done.evaluations()[0]
    console.report(report)
    console.say(f"Report: {latest / 'report.html'}")
    if console.json_mode:
        console.json({"run": str(done.path), "evaluation": str(latest), "report": report})
