"""`biases: shared`: one bias a layer, trained by all members together, stored and counted once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

METHODS = ["sve", "sve_band", "sve_lora", "lora_ensemble", "batch_ensemble"]


@pytest.mark.parametrize("method", METHODS)
def test_one_bias_a_layer_trains_for_all_members(lab: Any, method: str) -> None:
    built = lab.build("bert", method, params={"biases": "shared"})
    linears = list(built.ensemble.member_linears())
    assert built.ensemble.parameter_table()["bias"] == sum(len(linear.view.bias) for linear in linears)
    before = {linear.view.name: linear.view.bias.detach().clone() for linear in linears}
    for linear in linears:  # no spread at the start: sharing members must not be told apart by it
        assert torch.equal(linear.plain_bias(0), before[linear.view.name])
    built.fit()
    moved = [float((linear.plain_bias(2) - before[linear.view.name]).abs().max()) for linear in linears]
    assert min(moved) > 0 and sorted(moved)[len(moved) // 2] > 1e-3  # attention is blind to key biases: they hardly move
    for linear in linears:
        assert torch.equal(linear.plain_bias(0), linear.plain_bias(2)) and torch.equal(
            linear.plain_bias(0), linear.plain_bias(None)
        )
    torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=3e-5, rtol=3e-5)


def test_members_in_turn_give_the_same_as_together(lab: Any) -> None:
    ends = []
    for execution in ("batched", "sequential"):
        built = lab.build("bert", "sve", params={"biases": "shared"})
        built.fit(member_execution=execution)
        ends.append(torch.cat([linear.plain_bias(0) for linear in built.ensemble.member_linears()]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)
