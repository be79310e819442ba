"""Target `onnx`: the whole ensemble, the averaged network or members as ONNX graphs with free batch and sequence axes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sve_cli.errors import NotExportable
from sve_cli.export.artifact import Options, Target
from sve_cli.export.graph import Graph, plans
from sve_cli.export.graph_write import Format, check_files, export_graphs
from sve_cli.export.packages import require_packages

FILE = "model.onnx"
ONE_FILE = 1_800_000_000  # bytes; a protobuf ends at 2 GiB, and larger weights go into a file beside it


def trace(found: Graph, path: Path) -> dict[str, Any]:
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
    return {"traced_by": f"torch.onnx.export ({'dynamo' if dynamo else 'TorchScript'})"}


def _named_axes(found: Graph) -> dict[str, dict[int, str]]:
    axes = {name: found.axes() for name in found.names}
    return axes | {
        name: {1 if name == "logits" and "mutual_information" in found.outputs else 0: "batch"} for name in found.outputs
    }


def _names(members: Sequence[int], options: Options) -> list[str]:
    require_packages("onnx", "onnx", "onnx", "onnxruntime")
    return [plan.folder for plan in plans(members, options, "onnx")]


FORMAT = Format("onnx", FILE, "onnxruntime.InferenceSession('FOLDER/model.onnx')", trace)
FLOAT32 = "onnxruntime has no bfloat16 kernels for most operators on the CPU, where the certificate is made."
TARGET = Target(_names, partial(export_graphs, form=FORMAT), partial(check_files, file=FILE), float32_because=FLOAT32, entry=FILE)
