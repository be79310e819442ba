"""`sve init ci`: a workflow that gates builds on calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json
from sve_cli.console import Console
from sve_cli.errors import SveError

init_app = typer.Typer(help="Write files to start from: ci.", no_args_is_help=True)


@init_app.callback()
def init() -> None:
    """Write files to start from."""


@init_app.command("ci")
def ci(
    recipe: Annotated[
        str | None, typer.Option(help="What a build trains: a shipped recipe, or a file from the repository's folder on.")
    ] = None,
    predictions: Annotated[
        str | None, typer.Option(help="Instead of a recipe: a predictions file that a step of yours writes (npz, CSV, parquet).")
    ] = None,
    out: Annotated[Path, typer.Option(help="The repository's folder.")] = Path("."),
    package: Annotated[
        str | None, typer.Option(help="What pip installs, as in 'sve-cli @ git+https://…'; default: where this one came from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a GitHub workflow that trains, gates and updates the baseline, and a first gates.yaml."""
    from sve_cli.workflows.init_ci import BASELINE, CiOptions, installed_from, write_ci

    console = Console(json_mode=as_json)
    if recipe is not None and predictions is not None:
        raise SveError("--recipe and --predictions are different things to gate.", "Name one of them.")
    standard = CiOptions()
    chosen = recipe if recipe is not None or predictions is not None else standard.recipe
    found, certain = (package, True) if package else installed_from()
    written = write_ci(out, CiOptions(chosen, predictions, found))
    for path in written:
        console.say(f"Wrote {path}")
    if predictions is not None:
        console.say("Put the step that writes the predictions where the workflow says so, in both jobs.")
    if not certain:
        console.warn(f"A build installs '{found}' from the package index, and this sve was installed from a folder: see --package.")
    console.say(f"Commit both, then start the workflow by hand once: it opens a pull request with {BASELINE}.")
    if as_json:
        console.json({"files": written, "baseline": BASELINE})
