"""Every workload by name. Each family (`train`, `growth`) has a process of its own; each workload returns one JSON object.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# name -> (module of benchmarks.speed.rows, function, what it is)
WORKLOADS: dict[str, tuple[str, str, str]] = {
    "train.vit.small": ("training", "vit_small_batch", "ViT-S, 224 px, 4 images a member"),
    "train.vit.large": ("training", "vit_large_batch", "ViT-S, 224 px, 32 images a member"),
    "train.minilm.small": ("training", "minilm_small_batch", "MiniLM's architecture, 128 tokens, 8 texts a member"),
    "train.minilm.large": ("training", "minilm_large_batch", "MiniLM's architecture, 128 tokens, 32 texts a member"),
    "train.clinc150.small": ("training", "clinc150_small_batch", "MiniLM on CLINC150's own batches, 8 texts a member"),
    "train.clinc150.large": ("training", "clinc150_large_batch", "MiniLM on CLINC150's own batches, 32 texts a member"),
    "predict.clinc150": ("prediction", "clinc150_test", "prediction on the whole test split"),
    "predict.memory": ("prediction", "memory", "peak memory of prediction"),
    "memory.vit": ("memory", "vit_training", "peak memory of training, ViT-S"),
    "memory.minilm": ("memory", "minilm_training", "peak memory of training, MiniLM's architecture"),
    "decompose.four_to_one": ("decomposition", "four_to_one", "decomposition of 4:1 layers"),
    "decompose.square": ("decomposition", "square", "decomposition of square layers"),
    "decompose.accuracy": ("decomposition", "accuracy", "accuracy of the decomposition on hard matrices"),
    "start.second_run": ("startup", "second_run", "second run of a recipe"),
    "start.help": ("startup", "help_text", "sve --help"),
    "start.evaluate": ("startup", "score_file", "sve evaluate --predictions"),
    "growth.members": ("growth", "members", "cost against M"),
    "growth.tokens": ("growth", "tokens", "cost against tokens"),
    "growth.width": ("growth", "width", "cost against width"),
    "growth.depth": ("growth", "depth", "cost against depth"),
    "growth.memory": ("growth", "member_memory", "memory of one more member"),
    "check": ("training", "check_transformer", "a small BERT: what the regression check measures"),
}


def workload(name: str) -> Callable[..., dict[str, Any]]:
    """The function that measures a workload, told a `Context`."""
    module, function, _ = WORKLOADS[name]
    found: Callable[..., dict[str, Any]] = getattr(import_module(f"benchmarks.speed.rows.{module}"), function)
    return found


def title(name: str) -> str:
    """What a workload is, in a few words."""
    return WORKLOADS[name][2]
