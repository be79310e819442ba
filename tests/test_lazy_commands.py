"""The list in `sve --help` is that of the commands, whose modules it does not import."""

from __future__ import annotations

from typing import Any

import typer.main

from sve_cli.cli import app
from sve_cli.commands.lazy import COMMANDS


def test_every_text_is_the_first_sentence_of_its_commands_help() -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("sve", ["train"], resilient_parsing=True)
    assert group.list_commands(context) == list(COMMANDS)
    for name, text in COMMANDS.items():
        command = group.get_command(context, name)
        paragraph = " ".join(command.help.split("\n\n")[0].split())
        assert paragraph.split(". ")[0].rstrip(".") + "." == text, name
        assert command is group.get_command(context, name) and command.name == name
    assert group.get_command(context, "nosuch") is None


def test_a_groups_list_of_commands_is_whole_on_a_narrow_terminal() -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("sve", ["gate"], resilient_parsing=True)
    gate = group.get_command(context, "gate")
    shown = gate.get_help(gate.context_class(gate, info_name="gate", terminal_width=60))
    for command in gate.commands.values():
        assert " ".join(command.help.split()).rstrip(".") in " ".join(shown.split())
