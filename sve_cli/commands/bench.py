"""`sve bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sve_cli.commands.options import Json, Overrides
from sve_cli.console import Console

if TYPE_CHECKING:
    from sve_cli.benchmark import BenchTable


DEFAULT_METHODS = "single, heads_only, deep_ensemble, lora_ensemble, sve, sve_band"  # those that nobody chose


def bench(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a shipped one.")],
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, separated by commas. Behind the recipe, METHOD:key=value changes it for one of them. "
            f"Default: {DEFAULT_METHODS}."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per method, from the recipe's on.")] = 3,
    grid: Annotated[
        str,
        typer.Option(
            help="Each method's learning-rate grid: 1 point (no search), 3 (1/3, 1, 3 times), 5, 7, or factors: 1/3,1,3,9."
        ),
    ] = "3",
    sweep: Annotated[
        list[str] | None, typer.Option(help="An ablation: recipe key and values, like method.members=1,2,4; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: bench/<recipe>.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The row that differences are against; default: sve, else single, else the first.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows per split, for a quick try; the same for every seed.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs trained at once.")] = 1,
    costs: Annotated[bool, typer.Option(help="Measure FLOPs, training time and latency side by side.")] = True,
    table: Annotated[bool, typer.Option("--table", help="Train nothing: only make the table of what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Compare methods on a recipe's task: equal steps, tuned rates, several seeds, one table."""
    import sys

    from sve_cli.rundir import runs_root
    from sve_cli.workflows.bench import bench as run_bench
    from sve_cli.workflows.bench import write_table
    from sve_cli.workflows.bench_cells import Study, grid_factors, parse_methods, parse_sweep, shown_command
    from sve_cli.workflows.bench_checks import by_default

    console = Console(json_mode=as_json)
    named = Path(recipe).stem
    folder = out or Path("bench") / named
    chosen = DEFAULT_METHODS if methods is None else methods
    study = Study(
        recipe=recipe, overrides=tuple(overrides or []), methods=parse_methods(chosen), seeds=seeds,
        sweep=parse_sweep(sweep or []), factors=grid_factors(grid), out=folder, runs=runs_root() / "bench" / folder.absolute().name,
        limit=limit, command=shown_command(["sve", *sys.argv[1:]]), reference=reference,
    )  # fmt: skip
    if methods is None and not table:
        study = by_default(study, console)
    found = write_table(folder, study, console) if table else run_bench(study, console, jobs, costs)
    if table and found.task != named:
        console.warn(f"The table is of what is in '{folder}', made from the recipe {found.task}; {named} is not looked at.")
    show(found, console)
    if as_json:
        console.json(found)


def show(table: BenchTable, console: Console) -> None:
    """The table on a terminal."""
    from sve_cli.render.bench import sections, subtitle

    console.say(subtitle(table))
    for heading, content in sections(table):
        if content is not None:
            console.table(heading, content.columns, content.rows)
