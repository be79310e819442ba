"""`sve decompose`: the singular value decomposition of every targeted layer into the store, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sve_cli.backbone.stream import stream_targets
from sve_cli.factors import FactorStore
from sve_cli.factors.store import LayerResult
from sve_cli.recipe import MethodSpec, ModelSpec
from sve_cli.workflows.session import Log


def decompose(
    model: ModelSpec, method: MethodSpec, task_name: str, log: Log, plan: bool = False
) -> tuple[list[LayerResult], FactorStore]:
    """Decompose the targets of a checkpoint that are not in the store yet.

    Args:
        plan: only name the layers and shapes; nothing is read or written. Returns no results then.

    Raises:
        CheckpointError: the checkpoint cannot be opened, or a layer cannot be decomposed.
    """
    store = FactorStore()
    layers = stream_targets(model, method, task_name)
    if plan:
        for name, shape, _ in layers:
            log.say(f"{name} {shape[0]} x {shape[1]}")
        return [], store
    with log.progress(len(layers), "Decomposing") as advance:
        weights: list[tuple[str, Callable[[], Tensor]]] = [(name, load) for name, _, load in layers]
        results = store.decompose_all(weights, lambda name, statistics, hit: advance(1, name))
    return results, store
