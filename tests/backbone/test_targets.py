"""Which layers `method.targets`, `exclude` and `last_blocks` mean."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from sve_cli.backbone import block_of, select_targets
from sve_cli.backbone.linears import unsupported_reason, view_of
from sve_cli.ensemble import MemberContext, MemberLinear, swap_linears
from sve_cli.errors import CheckpointError, SveError
from sve_cli.methods.member_norms import swap_norms
from sve_cli.recipe.spec import MethodSpec

PARTS = {
    "vit": ("blocks.{}.", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
    "bert": (
        "bert.encoder.layer.{}.",
        [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ],
    ),
    "llama": (
        "model.layers.{}.",
        [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ],
    ),
    "gpt2": ("transformer.h.{}.", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
}
OUTSIDE = {"vit": ["patch_embed.proj"], "bert": ["bert.pooler.dense"], "llama": [], "gpt2": []}


def names(lab: Any, network: str, **spec: Any) -> list[str]:
    return [v.name for v in lab.backbone(network).targets(MethodSpec(name="sve", **spec))]


@pytest.mark.parametrize("network", list(PARTS))
def test_auto_is_attention_and_mlp_of_every_block(lab: Any, network: str) -> None:
    block, parts = PARTS[network]
    auto = [block.format(i) + p for i in range(2) for p in parts]
    assert sorted(names(lab, network)) == sorted(auto)
    assert sorted(names(lab, network, last_blocks=1)) == sorted(n for n in auto if block.format(1) in n)
    assert sorted(names(lab, network, targets="all-linear")) == sorted(auto + OUTSIDE[network])
    assert sorted(names(lab, network, last_blocks=2)) == sorted(auto)
    with pytest.raises(SveError, match=r"last_blocks is 3, but this network has 2 blocks\. Write 1 to 2, or null for all"):
        names(lab, network, last_blocks=3)
    assert names(lab, network, targets=[parts[0]], exclude=["re:\\.0\\."]) == [block.format(1) + parts[0]]
    assert names(lab, network, targets=[auto[2], parts[0]], last_blocks=1) == [block.format(1) + parts[0]]
    pattern = "re:" + "|".join(p.replace(".", r"\.") + "$" for p in parts)
    assert sorted(names(lab, network, targets=pattern, exclude=OUTSIDE[network])) == sorted(auto)


def test_auto_on_a_convolutional_network(lab: Any) -> None:
    found = names(lab, "resnet")
    assert {"layer1.0.conv1", "layer1.0.conv2", "layer2.0.downsample.0"} <= set(found)
    assert "conv1" not in found
    assert "fc" not in found
    assert names(lab, "resnet", targets="all-linear")[0] == "conv1"
    assert "fc" not in names(lab, "resnet", targets="all-linear")
    assert {n.split(".")[0] for n in names(lab, "resnet", last_blocks=2)} == {"layer3", "layer4"}


@pytest.mark.parametrize("network", ["vit", "resnet", "bert", "bert_mean", "llama", "gpt2"])
def test_all_linear_can_train(lab: Any, network: str) -> None:
    ensemble = lab.build(network, targets="all-linear")
    ensemble.fit()  # refuses targets that the network never calls
    assert ensemble.ensemble.context.called == {linear.view.name for linear in ensemble.ensemble.member_linears()}


def test_what_matches_nothing_is_named(lab: Any) -> None:
    for settings, said in (
        ({"targets": "re:nothing"}, "method.targets: 're:nothing' matches no layer"),
        ({"targets": ["atn.qkv"]}, "Did you mean"),
        ({"targets": "re:("}, "not a regular expression"),
        ({"exclude": ["nothing"]}, "method.exclude: 'nothing' matches no layer"),
        ({"exclude": ["re:."]}, "No layer is left"),
    ):
        with pytest.raises(SveError) as caught:
            names(lab, "vit", **settings)
        assert said in str(caught.value), settings


def test_grouped_convolutions_are_left_out_or_refused_by_name() -> None:
    network = timm.create_model("tf_efficientnet_b0", num_classes=3)
    auto = [v.name for v in select_targets(network, MethodSpec(name="sve"))]
    assert "blocks.1.0.conv_pw" in auto
    assert "blocks.1.0.conv_dw" not in auto
    with pytest.raises(CheckpointError, match=r"'blocks\.1\.0\.conv_dw' is a depthwise convolution"):
        select_targets(network, MethodSpec(name="sve", targets=["blocks.1.0.conv_dw"]))


class Toy(nn.Module):
    """Blocks with torch's own attention, and one layer and one norm that stand in two places."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        shared, norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.layers = nn.ModuleList([layer, nn.Sequential(shared, norm), nn.Sequential(shared, norm)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[1:]:
            x = layer(x)
        return x


def test_multihead_attention_is_left_out_or_refused() -> None:
    assert [v.name for v in select_targets(Toy(), MethodSpec(name="sve"))] == ["layers.0.linear1", "layers.0.linear2", "layers.1.0"]
    with pytest.raises(CheckpointError, match="out_proj' lies inside torch.nn.MultiheadAttention"):
        select_targets(Toy(), MethodSpec(name="sve", targets=["out_proj"]))


def test_a_shared_layer_is_one_target_and_swapped_in_both_places() -> None:
    toy, context = Toy(), MemberContext((0,))
    views = [v for v in select_targets(toy, MethodSpec(name="sve")) if v.name == "layers.1.0"]
    swapped = swap_linears(toy, views, lambda v: MemberLinear(v, context))
    assert toy.layers[1][0] is toy.layers[2][0] is swapped["layers.1.0"]
    toy.layers[0] = nn.Identity()
    norms = swap_norms(toy, context, 2)
    assert list(norms) == ["layers.1.1"]
    assert toy.layers[1][1] is toy.layers[2][1] is norms["layers.1.1"]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.3.output.dense", "encoder.layer.3"), ("stages.0.blocks.1.mlp.fc1", "stages.0.blocks.1"), 
        ("layer2.0.conv1", "layer2.0"),
        ("transformer.h.11.attn.c_attn", "transformer.h.11"), ("patch_embed.proj", None), ("classifier.0", None), ("fc", None),
    ],
)  # fmt: skip
def test_blocks(name: str, block: str | None) -> None:
    assert block_of(name) == block


def test_router_layers_choose_experts_and_are_no_target() -> None:
    block = nn.ModuleDict({"gate": nn.Linear(4, 2), "gate_proj": nn.Linear(4, 4)})
    found = select_targets(nn.ModuleDict({"layers": nn.ModuleList([block])}), MethodSpec(name="sve"))
    assert [v.name for v in found] == ["layers.0.gate_proj"]
    assert torch.equal(found[0].weight_OI, block["gate_proj"].weight)


def test_a_convolution_that_is_more_than_one_is_no_target() -> None:
    """timm's weight-standardised ones: another weight in a plain convolution would not be this layer."""
    network = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=0)
    own = network.get_submodule("stages.0.blocks.0.conv1")
    assert isinstance(own, nn.Conv2d) and view_of("conv1", own) is None
    assert "StdConv2d" in str(unsupported_reason(own))
    plain = timm.create_model("resnet18", pretrained=False).get_submodule("layer1.0.conv1")
    assert unsupported_reason(plain) is None and view_of("conv1", plain) is not None
