"""Target `onnx`: the whole ensemble, the averaged network or members as ONNX graphs with free batch and sequence axes."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from sve_cli.errors import NotExportable
from sve_cli.export.artifact import Artifact, Source, Target, write_card
from sve_cli.export.graph import VERSUS, Graph, Plan, check_files, describe, graph, plans, what_it_is
from sve_cli.export.graph_card import usage
from sve_cli.export.packages import require_packages

FILE = "model.onnx"
ONE_FILE = 1_800_000_000  # bytes; a protobuf ends at 2 GiB, and larger weights go into a file beside it


def export_onnx(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/onnx/`, `folder/onnx-averaged/` or `folder/onnx-member-<m>/`.

    Raises:
        NotExportable: this ensemble has no such network, or the exporter cannot trace it.
    """
    return [_write(source, folder, plan) for plan in plans(source, "onnx")]


def _write(source: Source, folder: Path, plan: Plan) -> Artifact:
    place, backbone = folder / plan.folder, source.ensemble.backbone
    place.mkdir(parents=True)
    found = graph(source, plan)
    backbone.save_config(place, source.ensemble.classes)
    traced_by = trace(found, place / FILE)
    size = sum(p.stat().st_size for p in place.glob(f"{FILE}*"))
    facts = {
        "graph_of": plan.claim,
        "bytes": size,
        "traced_by": traced_by,
        "inputs": list(found.names),
        "outputs": list(found.outputs),
    }
    call = "onnxruntime.InferenceSession('FOLDER/model.onnx')"
    artifact = Artifact("onnx", place, plan.member, call, plan.claim, "graph", versus=VERSUS[plan.claim], facts=facts)
    describe(source, found, artifact, FILE)
    write_card(source, artifact, what_it_is(source, plan, size), usage(backbone, found, "onnx"))
    return artifact


def trace(found: Graph, path: Path) -> str:
    """Write the graph; says which exporter did.

    Raises:
        NotExportable: it cannot trace this network.
    """
    weights = sum(p.numel() * p.element_size() for p in found.module.parameters())
    dynamo = find_spec("onnxscript") is not None
    axes = found.axes()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if dynamo:
                shapes = ({i: torch.export.Dim(name) for i, name in axes.items()},) * len(found.names)
                torch.onnx.export(
                    found.module, found.example, path, dynamo=True, dynamic_shapes=(shapes,), input_names=list(found.names),
                    output_names=list(found.outputs), external_data=weights > ONE_FILE, verbose=False,
                )  # fmt: skip
            else:
                torch.onnx.export(
                    found.module, found.example, str(path), dynamo=False, input_names=list(found.names),
                    output_names=list(found.outputs), dynamic_axes=_named_axes(found), verbose=False,
                )  # fmt: skip
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        raise NotExportable(f"torch.onnx cannot trace this network: {first}", "Use --to merged.") from error
    return "torch.onnx.export (dynamo)" if dynamo else "torch.onnx.export (TorchScript)"


def _named_axes(found: Graph) -> dict[str, dict[int, str]]:
    axes = {name: found.axes() for name in found.names}
    return axes | {
        name: {1 if name == "logits" and "mutual_information" in found.outputs else 0: "batch"} for name in found.outputs
    }


def check(folder: Path, text: bool) -> None:
    """Refuse an export that lacks a file; see `check_files`."""
    check_files(folder, text, FILE)


def _names(source: Source) -> list[str]:
    require_packages("onnx", "onnx", "onnx", "onnxruntime")
    return [plan.folder for plan in plans(source, "onnx")]


TARGET = Target(_names, export_onnx, check)
