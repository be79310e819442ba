"""Reloader `graph`: onnxruntime or torch.export on the CPU; the folder's own tokenizer or image preparation.

Shapes: M members, N samples, B batch, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[dict[str, Tensor]], list[Tensor]]


def answer(folder: Path, asked: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every output of the graph, and what was found."""
    graph = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    run, runtime = (_onnx if graph["file"].endswith(".onnx") else _torch_export)(folder / graph["file"], graph)
    batches, library = _batches(folder, asked, graph["inputs"])
    parts = [run(batch) for batch in batches]
    outputs = {}
    for i, name in enumerate(graph["outputs"]):
        of_members = name == "logits" and "mutual_information" in graph["outputs"]
        outputs[name] = torch.cat([part[i] for part in parts], dim=1 if of_members else 0)
    versions = {runtime.__name__: runtime.__version__, library.__name__: library.__version__}
    return outputs, {"classes": graph["classes"], "missing": [], "versions": versions}


def _onnx(path: Path, graph: dict[str, Any]) -> tuple[Run, Any]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.OnnxRuntimeException as error:
        raise RuntimeError(str(error)) from error

    def run(batch: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(graph["outputs"], {name: batch[name].numpy() for name in graph["inputs"]})
        return [torch.from_numpy(array) for array in found]

    return run, onnxruntime


def _torch_export(path: Path, graph: dict[str, Any]) -> tuple[Run, Any]:
    network = torch.export.load(path).module()
    return lambda batch: list(network(*(batch[name] for name in graph["inputs"]))), torch


def _batches(folder: Path, asked: Any, names: dict[str, Any]) -> tuple[list[dict[str, Tensor]], Any]:
    if asked.kind == "images":
        import timm

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
        transform = timm.data.create_transform(**timm.data.resolve_data_config(config), is_training=False)
        return [{"image": pixels} for pixels in asked.pixels(transform)], timm
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if asked.kind == "prompts":
        ids = asked.prompts(tokenizer)
        return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids], transformers
    return [{name: batch[name] for name in names} for batch in asked.tokenised(tokenizer)], transformers
