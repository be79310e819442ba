"""Options that several commands share."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sve_cli.errors import SveError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Run = Annotated[Path | None, typer.Argument(help="A run's folder; default: the newest complete run.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key.path=value.", show_default=False)]


def command_line() -> str:
    """This command as it was typed, for records."""
    return shlex.join(["sve", *sys.argv[1:]])


def name_list(values: list[str] | None) -> list[str]:
    """Repeated options, each of which may hold several names separated by commas; as in CSV, a name with a comma is quoted.

    Raises:
        SveError: an option was given without a name.
    """
    found = [name.strip() for row in csv.reader(values or [], skipinitialspace=True) for name in row if name.strip()]
    if values and not found:
        raise SveError(f"'{values[0]}' names nothing.", "Leave the option out, or write names separated by commas.")
    return found
