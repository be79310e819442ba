"""`sve gate`: `baseline` makes what later evaluations are compared with, `calibrate` learns how much they may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.gate_calibrate import calibrate
from sve_cli.commands.gate_options import ProbColumns, evaluate_changes, evaluated_run
from sve_cli.commands.options import Json, Run, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError

gate_app = typer.Typer(
    help="What evaluations are compared with, and how much they may differ; sve evaluate --gate judges.", no_args_is_help=True
)
Predictions = Annotated[Path | None, typer.Option(help="A predictions file instead of a run: of this tool, npz, CSV or parquet.")]


gate_app.command("calibrate")(calibrate)


@gate_app.command("baseline")
def baseline(
    run: Run = None,
    predictions: Predictions = None,
    out: Annotated[Path, typer.Option(help="The file to write; commit it.")] = Path("baseline.json"),
    aggregate: Annotated[str | None, typer.Option(help="probs or logits; default: the recipe's.")] = None,
    bins: Annotated[int | None, typer.Option(min=2, max=1000, help="Bins of the calibration errors.")] = None,
    prob_columns: ProbColumns = None,
    as_json: Json = False,
) -> None:
    """Write the baseline file of a run or a predictions file: its values, and what pairing needs of each sample."""
    from sve_cli.recipe import EvaluateSpec
    from sve_cli.rundir import RunDir, write_text
    from sve_cli.workflows.evaluate import evaluate as evaluate_folder
    from sve_cli.workflows.gate_sides import baseline_of, judge_predictions

    console = Console(json_mode=as_json)
    if run is not None and predictions is not None:
        raise SveError("RUN and --predictions are different things to make a baseline of.", "Name one of them.")
    changes = evaluate_changes(aggregate, bins)
    if predictions is not None:
        judged = judge_predictions(predictions, EvaluateSpec(**changes), prob_columns=name_list(prob_columns))
    else:
        found = RunDir.given(run)
        console.say(f"Run: {found.path}")
        folder, report = evaluate_folder(found, console, changes=changes)
        judged = evaluated_run(found, folder, report, changes)
    made = baseline_of(judged)
    text = made.to_json()
    write_text(out, text)
    for note in judged.notes:
        console.warn(note)
    console.say(f"{made.samples.n:,} samples, {len(text.encode()) / 1000:,.0f} kB. Paired comparison of: {', '.join(made.paired)}.")
    console.say(f"Baseline: {out}")
    if as_json:
        console.json({"baseline": str(out), "n": made.samples.n, "bytes": len(text.encode()), "paired": made.paired})
