"""`sve decompose`: the singular value decomposition of every targeted layer into the store, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sve_cli.backbone.stream import stream_targets
from sve_cli.factors import FactorStore, weight_key
from sve_cli.factors.store import LayerResult
from sve_cli.recipe import MethodSpec, ModelSpec
from sve_cli.workflows.session import Log


def plan(model: ModelSpec, method: MethodSpec, task_name: str, keys: bool = False) -> list[tuple[str, tuple[int, int], str]]:
    """Names, shapes (O, I) and, if asked for, store keys of the layers that `decompose` would decompose; nothing is written.

    A key is made of the weight's numbers, so all weights are read for it.

    Raises:
        CheckpointError: the checkpoint cannot be opened.
    """
    return [(name, shape, weight_key(load()) if keys else "") for name, shape, load in stream_targets(model, method, task_name)]


def decompose(model: ModelSpec, method: MethodSpec, task_name: str, log: Log) -> tuple[list[LayerResult], FactorStore]:
    """Decompose the targets of a checkpoint that are not in the store yet.

    Raises:
        CheckpointError: the checkpoint cannot be opened, or a layer cannot be decomposed.
    """
    store = FactorStore()
    layers = stream_targets(model, method, task_name)
    with log.progress(len(layers), "Decomposing") as advance:
        weights: list[tuple[str, Callable[[], Tensor]]] = [(name, load) for name, _, load in layers]
        results = store.decompose_all(weights, lambda name, statistics, hit: advance(1, name))
    return results, store
