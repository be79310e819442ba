"""Which norms `train_norms` trains, and which it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from sve_cli.ensemble import MemberContext
from sve_cli.errors import CheckpointError
from sve_cli.methods.member_norms import MemberNorm, swap_norms


@pytest.mark.parametrize("method", ["sve", "sve_band", "sve_lora"])
def test_below_the_last_blocks_norms_stay_the_checkpoints(lab: Any, method: str) -> None:
    params = {"train_norms": True, "dropout": "off"}
    whole = lab.build("bert", method, params=params)
    part = lab.build("bert", method, params=params, last_blocks=1)
    for made, blocks in ((whole, {"0", "1"}), (part, {"1"})):
        norms = [m.name for m in made.ensemble.network.modules() if isinstance(m, MemberNorm)]
        assert {name.split(".")[3] for name in norms} == blocks and len(norms) == 2 * len(blocks)
    part.fit(prefix_cache_mb=10)  # refused where a block below trains
    assert part.log.warnings == []


def test_norms_follow_the_targets_inside_the_last_blocks(lab: Any) -> None:
    made = lab.build("vit", params={"train_norms": True}, targets=["re:blocks.0.*fc1"])
    assert len([m for m in made.ensemble.network.modules() if isinstance(m, MemberNorm)]) == 4  # without last_blocks: all


@pytest.mark.parametrize(
    ("architecture", "sizes", "kind"),
    [
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, "LayerNorm2d"),
        ("resnet50_gn", {"layers": [1, 1, 1, 1]}, "GroupNorm"),
    ],
)
def test_norms_of_other_layouts_are_refused_by_name(architecture: str, sizes: dict[str, Any], kind: str) -> None:
    network = timm.create_model(architecture, pretrained=False, **sizes)
    with pytest.raises(CheckpointError, match=rf"The norm '.*' \({kind}\) cannot have member weights. Set train_norms: false"):
        swap_norms(network, MemberContext((0, 1)), 2)


def test_norms_that_are_layer_norms_are_the_members_own() -> None:
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, embed_dim=24, num_heads=2)
    norms = swap_norms(network, MemberContext((0, 1)), 2, blocks=["blocks.1"])
    assert list(norms) == ["blocks.1.norm1", "blocks.1.norm2"]
    assert norms["blocks.1.norm1"].weight_MD.shape == torch.Size([2, 24])
