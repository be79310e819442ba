"""MC dropout: what training drops, what a member drops for good, and who judges the epochs.

Shapes: M members, N samples, I in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sve_cli.errors import CheckpointError
from sve_cli.recipe import LoadedRecipe
from sve_cli.recipe.spec import DataSpec, MethodSpec, Recipe, TaskSpec, TrainSpec
from sve_cli.workflows.session import Silent, open_session
from sve_cli.workflows.train import plan_run


def passes(built: Any) -> list[tuple[Tensor, Tensor]]:
    """Each target's inputs before and after the dropping, in every training pass."""
    found: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module) -> None:
        before: list[Tensor] = []

        module.register_forward_pre_hook(lambda _, args: before.append(args[0].detach().clone()), prepend=True)
        module.register_forward_pre_hook(lambda _, args: found.append((before.pop(), args[0].detach().clone())))

    for view in built.ensemble.target_views():
        watch(view.module)
    built.ensemble.on_progress = lambda share: found.clear() if share == 0.0 else None  # what is tried out before the first step
    built.fit()
    return found


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_training_drops_the_rates_share_of_elements_and_scales_the_rest(lab: Any, rate: float) -> None:
    built = lab.build("bert", "mc_dropout", params={"rate": rate}, n_train=16)
    found = passes(built)
    assert len(found) == 2 * len(built.ensemble.target_views())
    ratios = [after[before != 0] / before[before != 0] for before, after in found]
    assert float((torch.cat(ratios) == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    for ratio in ratios:
        torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], 1 / (1 - rate)))
    before, after = found[0]
    dropped_NI = ((after == 0) & (before != 0)).flatten(0, 1)
    assert not dropped_NI.all(0).any() and not dropped_NI.all(1).any()  # elements, not a feature in all tokens


def test_training_drops_whole_channels_of_a_convolution(lab: Any) -> None:
    found = passes(lab.build("resnet", "mc_dropout", params={"rate": 0.4}, n_train=8))
    alive = [(before.flatten(2).abs().sum(2) > 0, before, after) for before, after in found]
    kept = [after.flatten(2).abs().sum(2)[there] > 0 for there, _, after in alive]
    assert float(1 - torch.cat(kept).float().mean()) == pytest.approx(0.4, abs=0.04)
    for _, before, after in alive:
        channel = after.flatten(2).abs().sum(2, keepdim=True) > 0
        torch.testing.assert_close(after.flatten(2), torch.where(channel, before.flatten(2) / 0.6, torch.zeros(())))


@pytest.mark.parametrize("network", ["bert", "resnet"])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_a_member_lacks_the_rates_share_of_features_and_the_rest_is_scaled(lab: Any, network: str, rate: float) -> None:
    built = lab.build(network, "mc_dropout", members=8, params={"rate": rate})
    base, gone = built.backbone.network, []
    member = [built.ensemble.member_network(m) for m in range(8)]
    for view in built.ensemble.target_views():
        weight_OI = base.get_submodule(view.name).weight.flatten(2).transpose(0, 1) if network == "resnet" else view.weight_OI.T
        own = []
        for m in range(8):
            thinned = member[m].get_submodule(view.name).weight
            thinned = thinned.flatten(2).transpose(0, 1) if network == "resnet" else thinned.T
            lost_I = thinned.flatten(1).abs().sum(1) == 0
            torch.testing.assert_close(thinned[~lost_I], weight_OI[~lost_I] / (1 - rate), atol=1e-6, rtol=1e-5)
            own.append(lost_I)
        gone.append(torch.stack(own))
    share_M = torch.cat(gone, 1).float().mean(1)
    assert float(share_M.mean()) == pytest.approx(rate, abs=0.03)
    lost_MI = torch.cat(gone, 1)
    assert len({tuple(row.tolist()) for row in lost_MI}) == 8  # each its own


def test_all_members_judge_the_epochs(lab: Any) -> None:
    """Member 0 alone is best after the first epoch, their mean after the second."""
    built, asked = lab.build("bert", "mc_dropout"), []
    right_NC = 4 * np.eye(3, dtype=np.float32)[built.test.labels_N]
    votes = iter([[1.0, -1.0, -1.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])

    def validate(members: Any) -> np.ndarray:
        asked.append(tuple(members))
        quality_M = next(votes)
        return np.stack([quality_M[m] * right_NC for m in members])

    fit = built.trainer(TrainSpec(epochs=3, batch_size=8, precision="float32"), validate=validate).fit()
    assert asked == [(0, 1, 2)] * 3
    assert fit.best[0]["epoch"] == 2


class ReadsWeight(nn.Module):
    """A wrapper that computes with a layer's weight instead of calling the layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


def test_a_layer_that_is_read_and_never_called_is_refused(lab: Any) -> None:
    for begin in (lambda made: made.fit(), lambda made: made.trainer(TrainSpec(batch_size=8)).dry_step()):
        built = lab.build("vit", "mc_dropout")
        block = built.ensemble.network.blocks[1].mlp
        block.fc2 = ReadsWeight(block.fc2)
        with pytest.raises(CheckpointError, match=r"never calls its layer 'blocks\.1\.mlp\.fc2' \(1 such\)"):
            begin(built)


def test_its_targets_are_in_the_plan_and_choosing_them_has_an_effect(lab: Any) -> None:
    method = MethodSpec("mc_dropout", members=2, targets=["fc1"], last_blocks=1)
    recipe = Recipe(lab.model("vit"), DataSpec("digits"), TaskSpec("image_classification"), method)
    log = Silent()
    built = open_session(recipe, log, limit=20).build()
    assert [view.name for view in built.target_views()] == ["blocks.1.mlp.fc1"]
    assert not [text for text in log.lines if "without effect" in text]
    assert plan_run(LoadedRecipe(recipe, "toy", "toy"), Silent(), limit=20).targets == [("blocks.1.mlp.fc1", 192, 48)]
