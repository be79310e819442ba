"""`sve recipes list / show / copy / schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json
from sve_cli.console import Console

recipes_app = typer.Typer(help="The shipped recipes: list, show, copy, schema.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A shipped recipe.")]


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Names and first lines of the shipped recipes."""
    from sve_cli.recipe import recipe_names, recipe_text

    console = Console(json_mode=as_json)
    rows = [[name, recipe_text(name).splitlines()[0].lstrip("# ")] for name in recipe_names()]
    console.table("Shipped recipes", ["name", "what"], rows)
    if as_json:
        console.json([{"name": name, "what": what} for name, what in rows])


@recipes_app.command("show")
def show_recipe(name: Name, as_json: Json = False) -> None:
    """Print a shipped recipe."""
    from sve_cli.recipe import recipe_text

    text = recipe_text(name)
    if as_json:
        Console(json_mode=True).json({"name": name, "text": text})
    else:
        typer.echo(text, nl=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Name,
    to: Annotated[Path | None, typer.Argument(help="File or folder; default: ./<name>.yaml.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a shipped recipe, to change it."""
    from sve_cli.errors import SveError
    from sve_cli.recipe import recipe_text
    from sve_cli.rundir import write_text

    text = recipe_text(name)
    target = to / f"{name}.yaml" if to is not None and to.is_dir() else to or Path(f"{name}.yaml")
    if target.exists():
        raise SveError(f"'{target}' exists already.", "Name another file.")
    write_text(target, text)
    console = Console(json_mode=as_json)
    console.say(f"Wrote {target}; train it with: sve train {target}")
    if as_json:
        console.json({"name": name, "file": target})


@recipes_app.command("schema")
def schema(as_json: Json = False) -> None:
    """Print the JSON schema of recipes, for editors. It is JSON with and without --json."""
    from sve_cli.recipe.schema import recipe_schema

    Console(json_mode=True).json(recipe_schema())
