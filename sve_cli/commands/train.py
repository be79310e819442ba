"""`sve train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sve_cli.commands.options import Json, Overrides, command_line
from sve_cli.console import Console
from sve_cli.errors import SveError

if TYPE_CHECKING:
    from sve_cli.workflows.train import Plan


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file or the name of a shipped one; with --resume: a run's folder.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; default: runs/<recipe>-<time>-<digest>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run (default: the newest).")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Rows per split, for a quick try; marked as not comparable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and train nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train an ensemble from a recipe and evaluate it."""
    from sve_cli.recipe import load_recipe
    from sve_cli.rundir import RunDir, runs_root

    console = Console(json_mode=as_json)
    if resume:
        _refuse_with_resume(overrides, limit, dry_run, overwrite)
        if recipe and out:
            raise SveError("A resumed run stays in its folder.", "Leave out --out.")
        run = RunDir.open(Path(recipe)) if recipe else RunDir.open(out) if out else RunDir.newest(runs_root(), complete=False)
        if run.complete:
            raise SveError(f"'{run.path}' is already complete.", f"Look at it with: sve evaluate {run.path}")
        loaded = load_recipe(str(run.path / "recipe.yaml"))
    elif recipe is None:
        raise SveError("No recipe is named.", "Name a file or a shipped recipe; sve recipes list shows them.")
    else:
        run = None
        loaded = load_recipe(recipe, overrides or [])
    from sve_cli.workflows.train import plan_run
    from sve_cli.workflows.train import train as run_training

    if dry_run:
        _show_plan(plan_run(loaded, console, limit, out, overwrite), console)
        return
    done, report = run_training(loaded, console, out=out, resume=run, limit=limit, overwrite=overwrite, command=command_line())
    latest = done.evaluations()[0]
    console.report(report)
    console.say(f"Report: {latest / 'report.html'}")
    if console.json_mode:
        console.json({"run": str(done.path), "evaluation": str(latest), "report": report})


def _refuse_with_resume(overrides: list[str] | None, limit: int | None, dry_run: bool, overwrite: bool) -> None:
    if overrides or limit or dry_run or overwrite:
        raise SveError("A resumed run goes on with its own settings.", "Leave out key=value, --limit, --dry-run and --overwrite.")


def _show_plan(plan: Plan, console: Console) -> None:
    if console.json_mode:
        console.json(plan.__dict__)
        return
    rows = [[name, f"{out} x {inner}", min(out, inner)] for name, out, inner in plan.targets]
    if rows:
        console.table(f"{len(rows)} targeted layers", ["layer", "shape", "rank"], rows)
    console.table("Trained, all members", ["what", "numbers"], [[k, v] for k, v in plan.trained.items()])
    console.table("Rows", ["split", "rows"], [[k, v] for k, v in plan.rows.items()])
    console.say(
        f"{plan.steps} optimiser steps; the checkpoint has {plan.base_parameters:,} parameters. Everything a run needs is there."
    )
