"""Folders that hold a graph: the graph, what a stranger needs beside it, the card. Shared by `onnx` and `torch_export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.export.artifact import Artifact, Source, averaging, write_card
from sve_cli.export.complete import refuse_pickled, require_files
from sve_cli.export.graph import Graph, Plan, graph, plans
from sve_cli.export.graph_card import usage

DESCRIPTION = "graph.json"
VERSUS: dict[str, tuple[str, ...]] = {"ensemble": (), "averaged": ("ensemble",), "member": ()}


@dataclass(frozen=True)
class Format:
    """A file format of graphs.

    Attributes:
        kind: the export target.
        file: the graph's file; larger weights may lie beside it under names that begin so.
        call: the public call that opens it.
        trace: (graph, path) -> facts; writes the file, raises NotExportable where the network cannot be traced.
        warning: what the card says besides.
    """

    kind: Literal["onnx", "torch_export"]
    file: str
    call: str
    trace: Callable[[Graph, Path], dict[str, Any]]
    warning: str = ""


def export_graphs(source: Source, folder: Path, form: Format) -> list[Artifact]:
    """Write `folder/<kind>/`, `folder/<kind>-averaged/` or `folder/<kind>-member-<m>/`.

    Raises:
        NotExportable: this ensemble has no such network, or it cannot be traced.
    """
    return [_write(source, folder / plan.folder, plan, form) for plan in plans(source.members, source.options, form.kind)]


def _write(source: Source, place: Path, plan: Plan, form: Format) -> Artifact:
    backbone = source.ensemble.backbone
    place.mkdir(parents=True, exist_ok=True)
    found = graph(source, plan)
    backbone.save_config(place, source.ensemble.classes)
    traced = form.trace(found, place / form.file)
    size = sum(p.stat().st_size for p in place.glob(f"{form.file}*"))
    facts = {"graph_of": plan.claim, "bytes": size, **traced, "inputs": list(found.names), "outputs": list(found.outputs)}
    if plan.claim == "ensemble":
        facts["aggregate"] = source.aggregate
    versus = VERSUS[plan.claim]
    artifact = Artifact(form.kind, place, plan.member, form.call, plan.claim, "graph", versus=versus, facts=facts)
    describe(source, found, artifact, form.file)
    write_card(source, artifact, what_it_is(source, plan, size) + form.warning, usage(backbone, found, form.kind))
    return artifact


def describe(source: Source, found: Graph, artifact: Artifact, file: str) -> None:
    """Write what a stranger needs beside the graph: names and shapes of its inputs and outputs, and the classes."""
    ensemble, backbone = source.ensemble, source.ensemble.backbone
    classes = list(ensemble.classes)
    if isinstance(backbone, CausalLM):
        classes = [str(t) for t in backbone.tokenizer.convert_ids_to_tokens(backbone.letter_ids)]
    document: dict[str, Any] = {
        "file": file,
        "is": {"ensemble": "the whole ensemble", "averaged": "the averaged network", "member": f"member {artifact.member}"}[
            artifact.claim
        ],
        "members": ensemble.n_members if artifact.claim == "ensemble" else 1,
        "inputs": {
            name: {"dtype": str(x.dtype).removeprefix("torch."), "shape": [found.axes().get(i, n) for i, n in enumerate(x.shape)]}
            for name, x in zip(found.names, found.example, strict=True)
        },
        "outputs": list(found.outputs),
        "classes": classes,
    }
    (artifact.path / DESCRIPTION).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def what_it_is(source: Source, plan: Plan, size: int) -> str:
    """The card's first sentence."""
    n = source.ensemble.n_members
    of = {
        "ensemble": f"A whole ensemble of {n} members as one graph, which runs them one after another and puts out "
        f"{averaging(source.aggregate)}, its entropy and the mutual information (both in nats), and every member's logits",
        "averaged": f"One network with the mean of the parameters of {n} members as a graph; it is not the ensemble",
        "member": f"Member {plan.member} of an ensemble of {n} as a graph; one member is not the ensemble",
    }[plan.claim]
    return f"{of}. {size / 1e6:.1f} MB."


def check_files(folder: Path, text: bool, file: str) -> None:
    """Refuse a folder that lacks a file or holds a pickled one; see `require_files`."""
    refuse_pickled(folder)
    require_files(folder, [file, DESCRIPTION, "config.json", *(["tokenizer_config.json"] if text else [])])
