"""`sve export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import SveError


def export(
    run: Run = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="merged (one checkpoint per member), averaged (one); commas allowed.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: RUN/exports.")] = None,
    members: Annotated[str | None, typer.Option("--members", help="Members to merge, as in 0,2; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Write certified checkpoints for the libraries' own loaders. Each is reloaded in a fresh process and compared."""
    targets = name_list(to)
    if not targets:
        raise SveError("No export target is named.", "Use --to merged, --to averaged, or both separated by a comma.")
    from sve_cli.rundir import RunDir, runs_root
    from sve_cli.workflows.export import export as export_run

    console = Console(json_mode=as_json)
    found = RunDir.open(run) if run is not None else RunDir.newest(runs_root())
    console.say(f"Run: {found.path}")
    results = export_run(found, targets, console, out=out, members=_members(members), command=command_line())
    rows = [[str(a.path), f"{c.gaps.max_logit_gap:.1e}", a.loads_with.replace("FOLDER", str(a.path))] for a, c in results]
    console.table("Certified artifacts", ["folder", "largest logit gap", "loads with"], rows)
    if as_json:
        console.json([{"artifact": a, "certificate": c} for a, c in results])


def _members(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SveError(f"--members '{text}' is not a list of member numbers.", "Write for example --members 0,2") from None
