"""The commands of `sve`, each imported when it is called: listing them needs none of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

# Command -> the first sentence of its help (a test compares them). Module, function and command have one name; a command that
# has commands of its own is a typer application named <command>_app.
COMMANDS = {
    "decompose": "Decompose the targeted layers once, into the factor store.",
    "train": "Train an ensemble from a recipe and evaluate it.",
    "evaluate": "Evaluate a run, a predictions file, or a checkpoint as it is.",
    "ood": "How well a run tells out-of-distribution inputs apart.",
    "shift": "What accuracy and calibration become on corrupted inputs.",
    "predict": "Apply a run to new inputs: label, probabilities, uncertainty, and whether to answer, abstain, or call it foreign.",
    "diversity": "How unlike a run's members are, and whether they disagree most far from the training data.",
    "transfer": "Keep what a run trained, refit only its heads on other data, and evaluate there.",
    "compare": "Compare runs on the same test samples: differences with intervals, p-values and a verdict for each metric.",
    "members": "How many members a run needs: every metric for 1 to all of its members.",
    "export": "Write certified artifacts for the libraries' own loaders.",
    "bench": "Compare methods on a recipe's task: equal steps, tuned rates, several seeds, one table.",
    "recipes": "The shipped recipes: list, show, copy, schema.",
    "gate": "What evaluations are compared with, and how much they may differ; sve evaluate --gate judges.",
    "init": "Write files to start from: ci.",
}
# rich's help costs a tenth of a second of every command
SETTINGS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


class WholeTexts(TyperGroup):
    """A group whose help lists its commands with their texts whole; click cuts them at a narrow terminal's edge."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()])


class LazyCommands(TyperGroup):
    """A group that knows its commands by name, and makes one when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        unmade: Any = dict.fromkeys(COMMANDS)
        self.commands = unmade

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One command, imported now; None: there is none of this name."""
        known: dict[str, Any] = dict(self.commands)
        if cmd_name in known and known[cmd_name] is None:
            self.commands[cmd_name] = _made(cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `sve --help`, each text whole."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _made(name: str) -> Any:
    module, holder = import_module(f"sve_cli.commands.{name}"), typer.Typer(**SETTINGS)
    own = getattr(module, f"{name}_app", None)
    if own is None:
        holder.command(name)(getattr(module, name))
        return typer.main.get_command(holder)
    holder.add_typer(own, name=name, cls=WholeTexts)
    return typer.main.get_group(holder).commands[name]
