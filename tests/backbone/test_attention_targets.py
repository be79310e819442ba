"""`method.targets: attention` and `mlp`: the two halves of auto, on the layer names of many libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import transformers as t
from torch import nn

from sve_cli.backbone import block_of, has_attention, select_targets
from sve_cli.errors import SveError
from sve_cli.recipe.spec import MethodSpec

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 1}
GPT: dict[str, Any] = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
DEBERTA: dict[str, Any] = {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": False}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}

BERT_ATTENTION = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
SPLIT = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
LLAMA = ([*SPLIT, "self_attn.o_proj"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
BERT = (BERT_ATTENTION, ["intermediate.dense", "output.dense"])
TIMM = (["attn.qkv", "attn.proj"], ["mlp.fc1", "mlp.fc2"])

# Builder, and the layers of a block: attention, the rest.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[list[str], list[str]]]] = {
    "bert": (lambda: t.BertModel(t.BertConfig(**SMALL)), BERT),
    "roberta": (lambda: t.RobertaModel(t.RobertaConfig(**SMALL)), BERT),
    "distilbert": (
        lambda: t.DistilBertModel(t.DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
        ([f"attention.{x}_lin" for x in ("q", "k", "v", "out")], ["ffn.lin1", "ffn.lin2"]),
    ),
    "deberta-v2": (
        lambda: t.DebertaV2Model(t.DebertaV2Config(**DEBERTA)),
        (
            [f"attention.self.{x}_proj" for x in ("query", "key", "value", "pos_key", "pos_query")] + ["attention.output.dense"],
            ["intermediate.dense", "output.dense"],
        ),
    ),
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), LLAMA),
    "mistral": (lambda: t.MistralModel(t.MistralConfig(**GROUPED)), LLAMA),
    "qwen2": (lambda: t.Qwen2Model(t.Qwen2Config(**GROUPED)), LLAMA),
    "gpt2": (lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT)), (["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"])),
    "gpt_neox": (
        lambda: t.GPTNeoXModel(t.GPTNeoXConfig(**SMALL)),
        (["attention.query_key_value", "attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
    ),
    "opt": (
        lambda: t.OPTModel(t.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16)),
        ([*SPLIT, "self_attn.out_proj"], ["fc1", "fc2"]),
    ),
    "t5": (
        lambda: t.T5EncoderModel(t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
        ([f"layer.0.SelfAttention.{x}" for x in "qkvo"], ["layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"]),
    ),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", **VIT), TIMM),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **SWIN),
        (TIMM[0], [*TIMM[1], "downsample.reduction"]),
    ),
    "timm swinv2": (
        lambda: timm.create_model("swinv2_tiny_window8_256", img_size=64, **SWIN),
        ([*TIMM[0], "attn.cpb_mlp.0", "attn.cpb_mlp.2"], [*TIMM[1], "downsample.reduction"]),
    ),
    "timm convnext": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
        ([], [*TIMM[1], "downsample.1"]),
    ),
}


def selected(network: nn.Module, targets: str, **spec: Any) -> list[str]:
    return [v.name for v in select_targets(network, MethodSpec(name="sve", targets=targets, **spec))]


def inside(names: list[str]) -> set[str]:
    return {n.removeprefix(f"{block_of(n)}.") for n in names}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_attention_and_mlp_split_auto(name: str) -> None:
    build, (attention, rest) = NETWORKS[name]
    network, spec = build(), MethodSpec(name="sve")
    assert has_attention(network, spec) == bool(attention)
    mlp = selected(network, "mlp")
    assert inside(mlp) == set(rest)
    if attention:
        assert inside(selected(network, "attention")) == set(attention)
        assert sorted(selected(network, "attention") + mlp) == sorted(selected(network, "auto"))
    else:
        assert mlp == selected(network, "auto")
        with pytest.raises(SveError, match=r"'attention', but this network has no attention layer .* Use method.targets: auto"):
            selected(network, "attention")


@pytest.mark.parametrize("network", ["vit", "resnet", "bert", "bert_mean", "llama", "gpt2"])
def test_the_tiny_networks_train_on_either_half(lab: Any, network: str) -> None:
    backbone = lab.backbone(network)
    found = {s: [v.name for v in backbone.targets(MethodSpec(name="sve", targets=s))] for s in ("auto", "mlp")}
    if network == "resnet":
        assert found["mlp"] == found["auto"]
        assert not has_attention(backbone.network, MethodSpec(name="sve"))
        return
    found["attention"] = [v.name for v in backbone.targets(MethodSpec(name="sve", targets="attention"))]
    assert sorted(found["attention"] + found["mlp"]) == sorted(found["auto"])
    built = lab.build(network, targets="attention").ensemble
    assert [m.view.name for m in built.member_linears()] == found["attention"]


def test_exclude_and_last_blocks_narrow_the_halves() -> None:
    network = NETWORKS["opt"][0]()
    assert selected(network, "attention", last_blocks=1, exclude=["q_proj"]) == [
        f"decoder.layers.1.self_attn.{x}" for x in ("k_proj", "v_proj", "out_proj")
    ]
    assert not has_attention(network, MethodSpec(name="sve", exclude=["re:self_attn"]))
    assert has_attention(network, MethodSpec(name="sve", targets="mlp"))  # what the recipe targets does not matter
    with pytest.raises(SveError, match="No layer is left"):
        selected(network, "attention", exclude=["re:self_attn"])


def block(**layers: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(layers)])})


def linears(*names: str) -> nn.Module:
    return nn.ModuleDict({n: nn.Linear(4, 4) for n in names})


@pytest.mark.parametrize(
    ("network", "attention"),
    [
        (block(**{n: nn.Linear(4, 4) for n in ("q_proj", "kv", "Wo", "fc1")}), {"q_proj", "kv", "Wo"}),  # right in the block
        (block(mixer=linears("Wqkv", "out_proj"), ff=linears("proj")), {"mixer.Wqkv", "mixer.out_proj"}),
        (block(mixer=linears("in_proj", "out_proj"), attn=linears("qkv")), {"attn.qkv"}),  # out_proj beside no query
        (
            block(attn_block=nn.ModuleDict({"attn": linears("qkv", "proj"), "mlp": linears("fc1", "proj")})),
            {"attn_block.attn.qkv", "attn_block.attn.proj"},  # an MLP inside a block named after its attention
        ),
    ],
)
def test_what_counts_as_attention(network: nn.Module, attention: set[str]) -> None:
    assert inside(selected(network, "attention")) == attention
    assert set(selected(network, "mlp")) == set(selected(network, "auto")) - set(selected(network, "attention"))


def test_a_network_of_attention_only_has_no_mlp_half() -> None:
    with pytest.raises(SveError, match="'mlp', but this network has no layer beside its attention"):
        selected(block(attn=linears("qkv", "proj")), "mlp")
