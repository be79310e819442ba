"""Methods of whole networks: where each begins, in what order it sees the data, and what is frozen in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

WHOLE = ("single", "deep_ensemble", "snapshot")


def network_of(state: dict[str, Tensor], member: int) -> dict[str, Tensor]:
    """One member's network in a state."""
    start = f"network.{member}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def round_starts(built: Any, **settings: Any) -> list[dict[str, Tensor]]:
    """The state before the first step of every round of a training."""
    found: list[dict[str, Tensor]] = []
    built.ensemble.on_progress = lambda share: found.append(built.ensemble.state()) if share == 0.0 else None
    built.fit(**settings)
    return found


def test_a_cycle_begins_where_the_last_one_ended(lab: Any) -> None:
    built = lab.build("bert", "snapshot", members=2)
    checkpoint = built.ensemble.state()
    first, second = round_starts(built, epochs=2)
    assert equal(first, checkpoint)
    end = built.ensemble.state()
    assert equal(network_of(second, 1), network_of(end, 0))
    assert torch.equal(second["heads.weight_MCF"][1], end["heads.weight_MCF"][0])
    assert not equal(network_of(second, 1), network_of(checkpoint, 1))
    assert not torch.equal(second["heads.weight_MCF"][1], checkpoint["heads.weight_MCF"][1])
    assert not equal(network_of(end, 1), network_of(second, 1))


def test_every_network_of_a_deep_ensemble_begins_at_the_checkpoint(lab: Any) -> None:
    built = lab.build("bert", "deep_ensemble")
    checkpoint = built.ensemble.state()
    for m, state in enumerate(round_starts(built)):
        assert equal(network_of(state, m), network_of(checkpoint, m))


@pytest.mark.parametrize("method", ["deep_ensemble", "snapshot"])
def test_every_member_sees_the_data_in_its_own_order(lab: Any, method: str) -> None:
    built = lab.build("bert", method)
    orders: list[list[int]] = []
    built.ensemble.on_progress = lambda share: orders.append([]) if share == 0.0 else None
    batch = built.train.batch

    def watched(rows: np.ndarray, *given: Any) -> Any:
        if orders:  # what is looked at before the first step is no training
            orders[-1].extend(rows.tolist())
        return batch(rows, *given)

    built.train.batch = watched
    built.fit(epochs=1 if method == "deep_ensemble" else 3)
    assert [sorted(order) for order in orders] == [list(range(24))] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("embeddings", ["train", "frozen"])
def test_frozen_embeddings_are_all_tables_and_nothing_else(lab: Any, method: str, embeddings: str) -> None:
    built = lab.build("bert", method, members=2, params={"embeddings": embeddings})
    modules = built.ensemble.network.named_modules()
    tables = {f"network.{n}.weight" for n, m in modules if isinstance(m, nn.Embedding)}
    assert len(tables) == 3 * built.ensemble.n_members  # tokens, positions, token types
    before, numbers = built.ensemble.state(), sum(p.numel() for p in built.backbone.network.parameters())
    named = dict(built.ensemble.named_parameters())
    start = {name: named[name].detach().clone() for name in tables}
    built.fit()
    moved = {name for name in tables if not torch.equal(named[name], start[name])}
    assert moved == (tables if embeddings == "train" else set())
    assert (tables & before.keys()) == moved
    assert any(not torch.equal(tensor, built.ensemble.state()[name]) for name, tensor in before.items() if name not in tables)
    frozen = sum(tensor.numel() for tensor in start.values()) if embeddings == "frozen" else 0
    own = sum(p.numel() for top in built.backbone.own_classifier(built.backbone.network) for p in top.parameters())
    assert built.ensemble.parameter_table()["backbone"] == built.ensemble.n_members * (numbers - own) - frozen
