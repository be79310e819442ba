"""`sve export`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sve_cli.commands import distil_options
from sve_cli.commands.options import Json, Run, command_line, name_list
from sve_cli.console import Console
from sve_cli.errors import CheckFailed, SveError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
ALIASES = {"bf16": "bfloat16", "fp32": "float32"}
TARGETS = (
    "merged (one checkpoint per member), averaged (one), adapter (all members in one small file), distilled, "
    "lora (one PEFT adapter per member), onnx and torch_export (one graph)"
)


Out = Annotated[Path | None, typer.Option("--out", help="Where to; default: RUN/exports.")]
Targets = Annotated[list[str] | None, typer.Option("--to", help=f"{TARGETS}; commas allowed.")]
Members = Annotated[
    str | None,
    typer.Option(
        "--members",
        help="Members to write one by one, as in 0,2; or best:2, chosen one after another by the validation NLL of their mean "
        "probability; default: all.",
    ),
]
ShardSize = Annotated[
    str | None, typer.Option("--shard-size", help="Split weight files at this size, as in 500MB; default: one file.")
]
WithBasis = Annotated[
    bool, typer.Option("--with-basis", help="adapter: store the singular vectors too, so that loading computes nothing.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="merged, averaged: store weights as float32 or bfloat16 (half the size, rounded).")
]
Rank = Annotated[
    str,
    typer.Option(
        "--rank",
        help="lora: directions kept in each layer: auto (95 % of Δσ², and all of a change that is low-rank itself), a number, "
        "energy:0.9 (share of Δσ²), fidelity:0.01 (largest logit gap on validation inputs) or full.",
    ),
]
ServingRanks = Annotated[
    bool, typer.Option("--serving-ranks", help="lora: one rank for all layers, of those that servers take (8 to 256).")
]
GraphOf = Annotated[
    str, typer.Option("--graph-of", help="onnx, torch_export: ensemble, averaged or members (one folder a member).")
]
Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        help="Upload what was certified to the Hugging Face hub: USER/NAME; several folders go to USER/NAME-<folder>. With "
        "--verify: that folder.",
    ),
]
Public = Annotated[bool, typer.Option("--public", help="--push: make new repositories public; default: private.")]
Verify = Annotated[
    Path | None,
    typer.Option("--verify", help="Export nothing: check that the files of this exported folder are those that were certified."),
]


def export(
    run: Run = None,
    to: Targets = None,
    out: Out = None,
    members: Members = None,
    shard_size: ShardSize = None,
    with_basis: WithBasis = False,
    dtype: Dtype = "float32",
    rank: Rank = "auto",
    serving_ranks: ServingRanks = False,
    graph_of: GraphOf = "ensemble",
    distil_epochs: distil_options.Epochs = None,
    distil_lr: distil_options.Rate = None,
    distil_rows: distil_options.Rows = None,
    unlabelled: distil_options.Unlabelled = None,
    single: distil_options.Single = None,
    push: Push = None,
    public: Public = False,
    verify: Verify = None,
    as_json: Json = False,
) -> None:
    """Write certified artifacts for the libraries' own loaders. Each is reloaded in a fresh process and compared."""
    if public and push is None:
        raise SveError("--public says how --push uploads, and nothing is pushed.", "Add --push USER/NAME.")
    if push is not None:
        from sve_cli.workflows.push import require_pushable

        require_pushable(push)
    if verify is not None:
        return _verify(verify, push, public, as_json)
    targets = name_list(to)
    if not targets:
        raise SveError("No export target is named.", f"Use --to with {TARGETS}; several are separated by commas.")
    chosen, best = parse_members(members)
    size = parse_size(shard_size)
    from sve_cli.export import Options
    from sve_cli.rundir import RunDir
    from sve_cli.workflows.export import export as export_run

    console = Console(json_mode=as_json)
    found = RunDir.given(run)
    console.say(f"Run: {found.path}")
    options = Options(
        shard_size=size, with_basis=with_basis, dtype=ALIASES.get(dtype, dtype), rank=rank, serving_ranks=serving_ranks,
        graph_of=graph_of, distil_epochs=distil_epochs, distil_lr=distil_lr, distil_rows=distil_rows,
        unlabelled=tuple(name_list(unlabelled)), single=single,
    )  # fmt: skip
    results = export_run(found, targets, console, out=out, members=chosen, best=best, options=options, command=command_line())
    _show(console, results)
    addresses = _push([artifact.path for artifact, _ in results], push, console, public)
    if as_json:  # after the upload: one document, and a failed upload has its own
        parts = zip(results, addresses, strict=True)
        console.json([{"artifact": _document(a), "certificate": c, "pushed": address} for (a, c), address in parts])


def _push(folders: list[Path], repository: str | None, console: Console, public: bool) -> Sequence[str | None]:
    """The addresses; None for each where nothing is to be pushed."""
    if repository is None:
        return [None] * len(folders)
    from sve_cli.workflows.push import push

    return push(folders, repository, console, public)


def _verify(folder: Path, repository: str | None, public: bool, as_json: bool) -> None:
    from sve_cli.certified import verify

    console = Console(json_mode=as_json)
    try:
        certificate = verify(folder)
    except CheckFailed as failure:
        if as_json:
            console.json({"intact": False, "reason": str(failure)})
        raise
    console.say(
        f"Every one of the {len(certificate['files'])} files of '{folder}' is as it was certified on {certificate['created']}."
    )
    (address,) = _push([folder], repository, console, public)
    if as_json:
        console.json({"intact": True, "pushed": address, **certificate})


def _show(console: Console, results: list[tuple[Any, Any]]) -> None:
    rows = [[str(a.path), f"{c.gaps.worst:.1e}", a.loads_with.replace("FOLDER", str(a.path))] for a, c in results]
    console.table("Certified artifacts", ["folder", "largest gap", "loads with"], rows)
    if cut := [c.versus_member for _, c in results if c.versus_member]:
        least, most = min(found["agreement"] for found in cut), max(found["mean_kl"] for found in cut)
        console.say(
            "The gap is to what was written. Beside the full members, which were cut or rounded: the same answer on "
            f"{least:.1%} of the samples or more, mean KL {most:.1e} nats or less."
        )


def _document(artifact: Any) -> dict[str, Any]:
    return {key: getattr(artifact, key) for key in ("kind", "path", "member", "loads_with", "claim", "tolerance", "facts")}


def parse_members(text: str | None) -> tuple[list[int] | None, int | None]:
    """(the members named, None) or (None, how many of the best); (None, None) for all.

    Raises:
        SveError: it is neither a list of numbers nor best:K.
    """
    if text is None:
        return None, None
    try:
        if text.startswith("best:"):
            return None, int(text.removeprefix("best:"))
        return [int(part) for part in text.split(",")], None
    except ValueError:
        raise SveError(
            f"--members '{text}' is not a list of member numbers.", "Write for example --members 0,2 or best:2"
        ) from None


def parse_size(text: str | None) -> int | None:
    """Bytes of a size such as 500MB (powers of ten); None: no limit.

    Raises:
        SveError: it is no size, or zero.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", text.strip().upper())
    size = 0 if match is None else int(float(match[1]) * UNITS[match[2]])
    if size < 1:
        raise SveError(f"--shard-size '{text}' is not a size.", "Write for example --shard-size 500MB")
    return size
