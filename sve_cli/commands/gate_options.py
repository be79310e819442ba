"""The options with which `sve evaluate` judges, and how a verdict is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sve_cli.console import Console
from sve_cli.errors import CheckFailed, SveError

if TYPE_CHECKING:
    from sve_cli.report import Report
    from sve_cli.rundir import RunDir
    from sve_cli.verdict import Verdict
    from sve_cli.workflows.gate_sides import Judged

Baseline = Annotated[
    Path | None,
    typer.Option(help="Compare with this run, predictions file, baseline file or report.json, and fail when it got worse."),
]
Gate = Annotated[Path | None, typer.Option(help="A gate file (gates.yaml): limits and allowed worsening for each metric.")]
FailIf = Annotated[list[str] | None, typer.Option("--fail-if", help="Fail on a value as it is: 'ece_top1_w15 > 0.03'; repeatable.")]
Junit = Annotated[Path | None, typer.Option(help="Write the gate's verdict as JUnit XML.")]
Summary = Annotated[Path | None, typer.Option(help="Append the gate's verdict as Markdown to this file.")]
ProbColumns = Annotated[
    list[str] | None, typer.Option("--prob-columns", help="Columns with one class's probability each, of a CSV or parquet file.")
]


@dataclass(frozen=True)
class GateOptions:
    """What the options say. `prob_columns` are those of --predictions, and of a baseline in the same form."""

    baseline: Path | None = None
    gate: Path | None = None
    fail_if: tuple[str, ...] = ()
    junit: Path | None = None
    summary: Path | None = None
    prob_columns: tuple[str, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether anything is to be judged."""
        return self.baseline is not None or self.gate is not None or bool(self.fail_if)

    def check(self) -> None:
        """Say what is wrong with them before any work.

        Raises:
            SveError: an output without anything to judge or that is a folder, a condition or a gate file that cannot be read.
        """
        for option, value in (("--junit", self.junit), ("--summary", self.summary)):
            if value is not None and not self.asked:
                raise SveError(f"{option} needs something to judge.", "Add --gate FILE, --baseline or --fail-if.")
            if value is not None and value.is_dir():  # an empty variable of a build is the current folder
                raise SveError(f"{option} names the folder '{value}'; it writes a file.", "Name a file, or leave it out.")
        if self.fail_if or self.gate is not None:
            from sve_cli.gate import load_gates, parse_condition

            for text in self.fail_if:
                parse_condition(text)
            if self.gate is not None:
                load_gates(self.gate)


NO_GATES = GateOptions()


def evaluate_changes(aggregate: str | None, bins: int | None) -> dict[str, Any]:
    """The keys of the recipe's `evaluate` section that `sve gate` may change, as far as they are given.

    Raises:
        SveError: no way of averaging members.
    """
    if aggregate not in (None, "probs", "logits"):
        raise SveError(f"--aggregate is probs or logits, not '{aggregate}'.")
    return {key: value for key, value in (("aggregate", aggregate), ("bins", bins)) if value is not None}


def evaluated_run(run: RunDir, evaluation: Path, report: Report, changes: dict[str, Any]) -> Judged:
    """A run's evaluation, to be judged."""
    from sve_cli.workflows.gate_sides import judge_run
    from sve_cli.workflows.session import run_recipe

    return judge_run(run, evaluation, report, replace(run_recipe(run).evaluate, **changes))


def decide(options: GateOptions, judged: Judged, console: Console) -> Verdict:
    """Judge, show the verdict and write its files."""
    from sve_cli.render.gate import gate_table, warnings
    from sve_cli.workflows.gate import judge_options, write_verdict

    verdict = judge_options(judged, options.baseline, options.gate, options.fail_if, options.prob_columns)
    table = gate_table(verdict)
    against = f" against {verdict.baseline}" if verdict.baseline else ""
    console.table(f"Gate: {verdict.title}{against}, {verdict.n:,} samples", table.columns, table.rows)
    for check in verdict.checks:
        console.say(check.sentence)
    for warning in warnings(verdict):
        console.warn(warning)
    write_verdict(verdict, options.junit, options.summary)
    return verdict


def enforce(verdict: Verdict | None) -> None:
    """Raise for a failed gate, after everything was shown.

    Raises:
        CheckFailed: a check failed.
    """
    if verdict is not None and not verdict.passed:
        hint = "Look for the change that made it worse; if it is meant, make a new baseline: sve gate baseline"
        raise CheckFailed(f"The gate failed. {verdict.sentence}", hint)
