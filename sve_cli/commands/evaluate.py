"""`sve evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sve_cli.commands.gate_options import (
    NO_GATES,
    Baseline,
    FailIf,
    Gate,
    GateOptions,
    Junit,
    ProbColumns,
    Summary,
    decide,
    enforce,
    evaluated_run,
)
from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError


def evaluate(
    run: Run = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="An out-of-distribution set: name, path or set:split; repeatable.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="probs, logits or weighted; default: the recipe's.")] = None,
    bins: Annotated[int | None, typer.Option(min=2, max=1000, help="Bins of the calibration errors.")] = None,
    bootstrap: Annotated[int | None, typer.Option(min=0, help="Bootstrap resamples; 0: no intervals.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Predict in batches of this size; default: the recipe's.")] = None,
    vector: Annotated[bool | None, typer.Option(help="Vector scaling: a weight and a bias per class.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score a saved predictions file; needs no model.")] = None,
    model: Annotated[str | None, typer.Option(help="Score this checkpoint as it is (with --data).")] = None,
    data: Annotated[str | None, typer.Option(help="The data set for --model: name, path or set:split.")] = None,
    task: Annotated[str | None, typer.Option(help="The task for --model; default: by the checkpoint.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Recipe keys for --model: key.path=value; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of the test split, for --model.")] = None,
    baseline: Baseline = None,
    gate: Gate = None,
    fail_if: FailIf = None,
    junit: Junit = None,
    summary: Summary = None,
    prob_columns: ProbColumns = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run, a predictions file, or a checkpoint as it is."""
    console = Console(json_mode=as_json)
    _check_sources(run, predictions, model, data, {"--task": task, "--set": set_, "--limit": limit})
    _check_of_run(vector, batch_size, predictions, model)
    given = {"aggregate": aggregate, "bins": bins, "bootstrap": bootstrap, "batch_size": batch_size, "vector": vector}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if aggregate not in (None, "probs", "logits", "weighted"):
        raise SveError(f"--aggregate is probs, logits or weighted, not '{aggregate}'.")
    if aggregate == "weighted" and run is None and (predictions is not None or model is not None):
        raise SveError("--aggregate weighted belongs to a run: the weights are fitted on its validation split.", "Leave it out.")
    gates = GateOptions(baseline, gate, tuple(fail_if or []), junit, summary, tuple(name_list(prob_columns)))
    gates.check()
    if model is not None and gates.asked:
        raise SveError("Gates judge a run or a predictions file, not --model.", "Leave --model out.")
    from sve_cli.recipe import EvaluateSpec
    from sve_cli.workflows.evaluate import checkpoint_recipe, evaluate_checkpoint

    if predictions is not None:
        from sve_cli.workflows.gate_sides import judge_predictions

        others = [Path(p) for p in name_list(ood)]
        judged = judge_predictions(predictions, EvaluateSpec(**changes), others, prob_columns=gates.prob_columns)
        console.report(judged.report)
        verdict = decide(gates, judged, console) if gates.asked else None
        if as_json:
            console.json(judged.report if verdict is None else {"report": judged.report, "gate": verdict.document()})
        enforce(verdict)
    elif model is not None and data is not None:
        recipe = checkpoint_recipe(model, data, task, [*(set_ or []), *(f"evaluate.{k}={v}" for k, v in changes.items())])
        report = evaluate_checkpoint(recipe, console, name_list(ood), limit)
        console.report(report)
        if as_json:
            console.json(report)
    else:
        evaluate_run(run, name_list(ood), changes, console, gates)


def _check_sources(
    run: Path | None, predictions: Path | None, model: str | None, data: str | None, of_model: dict[str, object]
) -> None:
    """Refuse two things to evaluate at once, and options that belong to another one."""
    sources = [name for name, value in (("RUN", run), ("--predictions", predictions), ("--model", model)) if value is not None]
    if len(sources) > 1:
        raise SveError(f"{' and '.join(sources)} are different things to evaluate.", "Name one of them.")
    if (model is None) != (data is None):
        raise SveError("--model and --data go together.", "Write: sve evaluate --model NAME --data NAME")
    for option, given in of_model.items():
        if given is not None and model is None:
            raise SveError(f"{option} belongs to --model.", "A run and a predictions file keep what they were made with.")


def _check_of_run(vector: bool | None, batch_size: int | None, predictions: Path | None, model: str | None) -> None:
    """Refuse options that mean nothing for what is evaluated."""
    if vector is not None and (model is not None or predictions is not None):
        raise SveError("--vector belongs to a run: it is fitted on the run's validation split.", "Leave it out.")
    if batch_size is not None and predictions is not None:
        raise SveError("--batch-size is for predicting, and --predictions are made already.", "Leave it out.")


def evaluate_run(
    run: Path | None, ood: list[str], changes: dict[str, Any], console: Console, gates: GateOptions = NO_GATES
) -> None:
    """Evaluate a run's folder, show the report, and judge it where asked."""
    from sve_cli.rundir import RunDir
    from sve_cli.workflows.evaluate import evaluate as evaluate_folder

    found = RunDir.given(run)
    console.say(f"Run: {found.path}")
    folder, report = evaluate_folder(found, console, ood=ood, changes=changes, command=command_line())
    console.report(report)
    console.say(f"Report: {folder / 'report.html'}")
    verdict = decide(gates, evaluated_run(found, folder, report, changes), console) if gates.asked else None
    if console.json_mode:
        document = {"run": str(found.path), "evaluation": str(folder), "report": report}
        console.json(document if verdict is None else document | {"gate": verdict.document()})
    enforce(verdict)
