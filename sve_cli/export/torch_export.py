"""Target `torch_export`: the same graphs as `onnx`, as torch.export archives (.pt2) that hold no pickle.

torch.export.save stores weights as raw bytes, but the inputs a graph was traced on as a pickle, and torch.export.load opens
pickles without restriction where an archive holds some. So the traced inputs are left out, an archive with any pickled part is
refused, and the card says what opening a stranger's archive means.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sve_cli.errors import CheckFailed, NotExportable
from sve_cli.export.artifact import Options, Target
from sve_cli.export.graph import Graph, plans
from sve_cli.export.graph_write import Format, check_files, export_graphs

FILE = "model.pt2"
WARNING = (
    " This archive holds no pickle. torch.export.load runs the pickles of an archive that does, so open one from elsewhere only if "
    "you trust where it comes from, and compare the digests in certificate.json."
)


def trace(found: Graph, path: Path) -> dict[str, Any]:
    """Write the graph without the inputs it was traced on.

    Raises:
        NotExportable: torch.export cannot trace this network.
    """
    shapes = (dict.fromkeys(found.axes(), torch.export.Dim.DYNAMIC),) * len(found.names)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(found.module, found.example, dynamic_shapes=(shapes,))
            program._example_inputs = None  # they would be stored as a pickle
            torch.export.save(program, path)
    except (RuntimeError, torch._dynamo.exc.UserError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        raise NotExportable(f"torch.export cannot trace this network: {first}", "Use --to merged, or --to onnx.") from error
    return {}


def pickled_parts(path: Path) -> list[str]:
    """The entries of an archive that torch.export.load would unpickle."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/sample_inputs/" in entry.filename and entry.file_size:
                found.append(entry.filename)
            if entry.filename.endswith(("weights_config.json", "constants_config.json")):
                config = json.loads(archive.read(entry))["config"]
                found += [name for name, part in config.items() if part.get("use_pickle") or part.get("tensor_meta") is None]
    return found


def check(folder: Path, text: bool) -> None:
    """Refuse an export that lacks a file, or an archive with a pickled part.

    Raises:
        CheckFailed: naming it.
    """
    check_files(folder, text, FILE)
    try:
        pickled = pickled_parts(folder / FILE)
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckFailed(f"'{FILE}' of the export '{folder.name}' is no torch.export archive ({error}).") from error
    if pickled:
        raise CheckFailed(f"'{FILE}' holds a pickled part, '{pickled[0]}', which can run code when opened.")


def _names(members: Sequence[int], options: Options) -> list[str]:
    return [plan.folder for plan in plans(members, options, "torch_export")]


FORMAT = Format("torch_export", FILE, "torch.export.load('FOLDER/model.pt2').module()", trace, WARNING)
FLOAT32 = "a graph computes in the type that it was traced in, and bfloat16 moves its outputs by more than a certificate allows."
TARGET = Target(_names, partial(export_graphs, form=FORMAT), check, float32_because=FLOAT32, entry=FILE)
