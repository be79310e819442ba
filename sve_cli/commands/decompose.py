"""`sve decompose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json, Overrides
from sve_cli.console import Console


def decompose(
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RECIPE", help="A checkpoint (name, folder, hub id), a recipe file or a shipped recipe."),
    ],
    overrides: Overrides = None,
    targets: Annotated[str | None, typer.Option(help="auto, all-linear, re:REGEX; default: auto, or the recipe's.")] = None,
    last_blocks: Annotated[int | None, typer.Option(min=1, help="Only the last k blocks.")] = None,
    task: Annotated[str, typer.Option(help="For a bare checkpoint: which task it will serve.")] = "text_classification",
    plan: Annotated[bool, typer.Option("--plan", help="Name layers and shapes only.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="With --plan: also each layer's key in the store.")] = False,
    as_json: Json = False,
) -> None:
    """Decompose the targeted layers once, into the factor store."""
    from dataclasses import replace

    from sve_cli.errors import SveError
    from sve_cli.recipe import MethodSpec, ModelSpec, load_recipe, recipe_names

    console = Console(json_mode=as_json)
    if source in recipe_names() or Path(source).suffix in (".yaml", ".yml"):
        recipe = load_recipe(source, overrides or []).recipe
        model, method, task = recipe.model, recipe.method, recipe.task.name
    elif overrides:
        raise SveError("key=value changes a recipe, and a bare checkpoint has none.", "Use --targets and --last-blocks.")
    else:
        model, method = ModelSpec(name=source), MethodSpec(name="sve")
    if targets is not None:
        method = replace(method, targets=targets)
    if last_blocks is not None:
        method = replace(method, last_blocks=last_blocks)
    from sve_cli.workflows.decompose import decompose as decompose_layers
    from sve_cli.workflows.decompose import plan as plan_layers

    if keys and not plan:
        raise SveError("--keys belongs to --plan.", "Write: sve decompose SOURCE --plan --keys")
    if plan:
        _show_plan(plan_layers(model, method, task, keys), keys, console)
        return
    results, store = decompose_layers(model, method, task, console)
    rows = [
        [
            name,
            f"{s.shape[0]} x {s.shape[1]}",
            s.rank,
            f"{100 * s.energy_top10:.1f} %",
            f"{s.condition:.1e}",
            s.near_equal,
            "stored" if hit else f"{s.seconds:.2f}",
        ]
        for name, s, hit in results
    ]
    console.table("Factors", ["layer", "shape", "rank", "energy in top 10 %", "condition", "near-equal", "seconds"], rows)
    console.say(f"{len(results)} layers: {store.computed} decomposed, {store.hits} already in {store.folder}.")
    if as_json:
        console.json([{"layer": name, "statistics": s, "stored": hit} for name, s, hit in results])


def _show_plan(layers: list[tuple[str, tuple[int, int], str]], keys: bool, console: Console) -> None:
    """Name, shape, rank and, if asked for, key of every layer."""
    names = ["layer", "shape", "rank", *(["key"] if keys else [])]
    rows = [[name, f"{o} x {i}", min(o, i), key][: len(names)] for name, (o, i), key in layers]
    console.table("Layers", names, rows)
    if console.json_mode:
        found = [[name, shape, min(shape), key][: len(names)] for name, shape, key in layers]
        console.json([dict(zip(names, layer, strict=True)) for layer in found])
