"""`sve gate calibrate`: how much slack a gate needs so that it does not fail on chance alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.gate_options import ProbColumns, evaluate_changes
from sve_cli.commands.options import Json, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError

DEFAULT = Path("gates.yaml")


def calibrate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN_OR_PREDICTIONS...", help="Evaluations of the same thing that differ by chance: other seeds, "
                       "batch sizes, number formats. Two or more, or one run with --batch-sizes.", show_default=False),
    ] = None,
    batch_sizes: Annotated[
        list[str] | None, typer.Option("--batch-sizes", help="Predict each run again at these batch sizes: 8,64.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", help="Report addresses; default: what --gate compares, else accuracy, nll, brier and ECE."),
    ] = None,
    quantile: Annotated[float, typer.Option(help="The quantile of the pairwise worsening that becomes the slack.")] = 1.0,
    gate: Annotated[
        Path | None,
        typer.Option(help=f"A gate file to put the slack into; the rest of it stays. Default: {DEFAULT} where there is one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"The file to write; default: --gate, else {DEFAULT}.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that exists.")] = False,
    aggregate: Annotated[str | None, typer.Option(help="probs or logits; default: the recipe's.")] = None,
    bins: Annotated[int | None, typer.Option(min=2, max=1000, help="Bins of the calibration errors.")] = None,
    prob_columns: ProbColumns = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Learn from repeated evaluations how much a metric may worsen without a true change, and write it to a gate file."""
    from sve_cli.gate import how_sure, load_gates
    from sve_cli.render.gate import slack_table
    from sve_cli.workflows.gate_calibrate import Repeats, check_out, write_gates
    from sve_cli.workflows.gate_calibrate import calibrate as learn

    console = Console(json_mode=as_json)
    if gate is None and out is None and DEFAULT.is_file():
        gate = DEFAULT
    target = out or gate or DEFAULT
    check_out(target, gate, overwrite)
    changes = evaluate_changes(aggregate, bins)
    file = load_gates(gate) if gate is not None else None
    repeats = Repeats(paths or [], _sizes(batch_sizes), changes, name_list(prob_columns))
    found = learn(repeats, name_list(metrics), quantile, file, console)
    write_gates(found, gate, target)
    table = slack_table(found.learned)
    console.table(f"Slack from {len(found.names)} evaluations: {', '.join(found.names)}", table.columns, table.rows)
    sentence, few = how_sure(len(found.names), quantile, found.runs)
    for warning in [*found.notes, *found.alike, *([sentence] if few else [])]:
        console.warn(warning)
    if not few:
        console.say(sentence)
    console.say(f"Gate file: {target}")
    if as_json:
        learned = [asdict(one) for one in found.learned]
        document = {"file": str(target), "evaluations": found.names, "quantile": quantile, "learned": learned}
        console.json({**document, "sentence": sentence, "few": few, "warnings": [*found.notes, *found.alike]})


def _sizes(texts: list[str] | None) -> list[int]:
    sizes = name_list(texts)
    for text in sizes:
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise SveError(f"--batch-sizes '{text}' is no batch size.", "Write for example --batch-sizes 8,64")
    return [int(text) for text in sizes]
