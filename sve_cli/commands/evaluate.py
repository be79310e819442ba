"""`sve evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError


def evaluate(
    run: Run = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="An out-of-distribution set: name, path or set:split; repeatable.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="probs or logits; default: the recipe's.")] = None,
    bins: Annotated[int | None, typer.Option(min=2, help="Bins of the calibration errors.")] = None,
    bootstrap: Annotated[int | None, typer.Option(min=0, help="Bootstrap resamples; 0: no intervals.")] = None,
    vector: Annotated[bool | None, typer.Option(help="Vector scaling: a weight and a bias per class.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score a saved predictions file; needs no model.")] = None,
    model: Annotated[str | None, typer.Option(help="Score this checkpoint as it is (with --data).")] = None,
    data: Annotated[str | None, typer.Option(help="The data set for --model: name, path or set:split.")] = None,
    task: Annotated[str | None, typer.Option(help="The task for --model; default: by the checkpoint.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Recipe keys for --model: key.path=value; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of the test split, for --model.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run, a predictions file, or a checkpoint as it is."""
    console = Console(json_mode=as_json)
    sources = [name for name, value in (("RUN", run), ("--predictions", predictions), ("--model", model)) if value is not None]
    if len(sources) > 1:
        raise SveError(f"{' and '.join(sources)} are different things to evaluate.", "Name one of them.")
    if (model is None) != (data is None):
        raise SveError("--model and --data go together.", "Write: sve evaluate --model NAME --data NAME")
    for option, given in (("--task", task), ("--set", set_), ("--limit", limit)):
        if given is not None and model is None:
            raise SveError(f"{option} belongs to --model.", "A run and a predictions file keep what they were made with.")
    if vector is not None and (model is not None or predictions is not None):
        raise SveError("--vector belongs to a run: it is fitted on the run's validation split.", "Leave it out.")
    changes: dict[str, Any] = {
        k: v for k, v in (("aggregate", aggregate), ("bins", bins), ("bootstrap", bootstrap), ("vector", vector)) if v is not None
    }
    if aggregate not in (None, "probs", "logits"):
        raise SveError(f"--aggregate is probs or logits, not '{aggregate}'.")
    from sve_cli.recipe import EvaluateSpec
    from sve_cli.workflows.evaluate import checkpoint_recipe, evaluate_checkpoint, evaluate_predictions

    if predictions is not None:
        stem = predictions.with_suffix("") if predictions.suffix in (".safetensors", ".parquet") else predictions
        report = evaluate_predictions(stem, EvaluateSpec(**changes), [Path(p) for p in name_list(ood)])
        console.report(report)
        if as_json:
            console.json(report)
    elif model is not None and data is not None:
        recipe = checkpoint_recipe(model, data, task, [*(set_ or []), *(f"evaluate.{k}={v}" for k, v in changes.items())])
        report = evaluate_checkpoint(recipe, console, name_list(ood), limit)
        console.report(report)
        if as_json:
            console.json(report)
    else:
        evaluate_run(run, name_list(ood), changes, console)


def evaluate_run(run: Path | None, ood: list[str], changes: dict[str, Any], console: Console) -> None:
    """Evaluate a run's folder and show the report."""
    from sve_cli.rundir import RunDir, runs_root
    from sve_cli.workflows.evaluate import evaluate as evaluate_folder

    found = RunDir.open(run) if run is not None else RunDir.newest(runs_root())
    console.say(f"Run: {found.path}")
    folder, report = evaluate_folder(found, console, ood=ood, changes=changes, command=command_line())
    console.report(report)
    console.say(f"Report: {folder / 'report.html'}")
    if console.json_mode:
        console.json({"run": str(found.path), "evaluation": str(folder), "report": report})
