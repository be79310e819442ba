"""LoRA-Ensemble: its start, its targets and its arithmetic.

Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sve_cli.backbone import LinearView
from sve_cli.ensemble import MemberContext
from sve_cli.errors import SveError
from sve_cli.methods.lora_ensemble import LoraLinear
from sve_cli.methods.low_rank import LowRank, LowRankSettings
from sve_cli.methods.matrix import Biases
from sve_cli.recipe.loader import load_recipe_text


def names(built: Any) -> list[str]:
    return [linear.view.name for linear in built.ensemble.member_linears()]


@pytest.mark.parametrize("biases", ["frozen", "member", "shared"])
def test_a_layer_by_hand(small_view: LinearView, biases: Biases) -> None:
    context = MemberContext((0, 1))
    layer = LoraLinear(small_view, context, LowRankSettings(1, "peft", 2.0), 2, 0, biases)
    with torch.no_grad():
        layer.lora.A_MRI.copy_(torch.tensor([[[1.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]]]))
        layer.lora.B_MOR.copy_(torch.tensor([[[2.0], [3.0]], [[-1.0], [0.0]]]))
        if layer.bias_MO is not None:
            layer.bias_MO[-1] = torch.tensor([0.0, 1.0])
    first = [9.0, 5.0] if biases == "shared" else [19.0, 24.0]
    second = [11.0, 18.0] if biases == "frozen" else [1.0, -1.0]  # [5, -2] - [4, 0] + its bias
    x_MI = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    assert layer(x_MI).tolist() == [first, second]
    assert layer.merged(0)[0].tolist() == [[5.0, 2.0, -4.0], [6.0, -1.0, -3.0]]
    assert layer.merged(1)[0].tolist() == [[1.0, 0.0, 0.0], [0.0, -1.0, 3.0]]
    assert layer.averaged()[0].tolist() == [[3.0, 1.0, -2.0], [3.0, -1.0, 0.0]]
    context.members = (1,)
    assert layer(x_MI[:1]).tolist() == [second]


@pytest.mark.parametrize("start", ["xavier", "peft"])
def test_a_starts_as_torch_would_draw_it_and_b_at_zero(start: Any) -> None:
    rank, inner = 8, 4000
    lora = LowRank((30, inner), LowRankSettings(rank, start, 1.0), 3, 0, "layer")
    reference = torch.empty(rank, inner)
    torch.manual_seed(0)
    if start == "xavier":
        nn.init.xavier_uniform_(reference, gain=10)
    else:
        nn.init.kaiming_uniform_(reference, a=5**0.5)
    drawn = lora.A_MRI.detach()
    assert float(lora.B_MOR.detach().abs().max()) == 0.0
    assert float(drawn.abs().max()) == pytest.approx(float(reference.abs().max()), rel=1e-3)
    assert float(drawn.std()) == pytest.approx(float(reference.std()), rel=0.01)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_members_start_is_the_same_in_any_company() -> None:
    settings = LowRankSettings(4, "xavier", 1.0)
    alone, among = (LowRank((5, 6), settings, m, 7, "layer").A_MRI for m in (1, 3))
    assert torch.equal(alone[0], among[0])
    assert not torch.equal(alone[0], LowRank((5, 6), settings, 1, 7, "other").A_MRI[0])
    assert not torch.equal(alone[0], LowRank((5, 6), settings, 1, 8, "layer").A_MRI[0])


def test_the_scale_follows_the_convention() -> None:
    assert LowRankSettings.checked(8, "xavier", None).scale == 1.0
    assert LowRankSettings.checked(8, "peft", None).scale == 2.0
    assert LowRankSettings.checked(8, "peft", 4.0).scale == 0.5
    with pytest.raises(SveError, match=r"method.params.alpha is set"):
        LowRankSettings.checked(8, "xavier", 16.0)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (3, 4), (12, 12)])
def test_directions_where_the_rank_is_above_a_layers_narrow_side(shape: tuple[int, int]) -> None:
    lora = LowRank(shape, LowRankSettings(8, "peft", 2.0), 2, 0, "layer")
    with torch.no_grad():
        lora.B_MOR.normal_(generator=torch.Generator().manual_seed(0))
    left_OK, right_KI, size_K = lora.directions(1)
    torch.testing.assert_close(left_OK @ right_KI, lora.delta_OI(1), atol=1e-5, rtol=1e-5)
    sizes = torch.linalg.svdvals(lora.delta_OI(1).double())[:8]
    torch.testing.assert_close(size_K, sizes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right_KI @ right_KI.T, torch.eye(len(size_K)), atol=1e-5, rtol=0)


def test_targets_are_attention_where_there_is_any(lab: Any) -> None:
    ends = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    assert names(lab.build("bert", "lora_ensemble")) == [f"bert.encoder.layer.{i}.{e}" for i in range(2) for e in ends]
    assert names(lab.build("vit", "lora_ensemble")) == [f"blocks.{i}.attn.{e}" for i in range(2) for e in ("qkv", "proj")]
    assert names(lab.build("resnet", "lora_ensemble")) == names(lab.build("resnet", "sve"))
    chosen = lab.build("bert", "lora_ensemble", targets="intermediate.dense")
    assert names(chosen) == [f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2)]


def test_trained_numbers_are_the_factors_and_the_heads(lab: Any) -> None:
    built = lab.build("vit", "lora_ensemble", members=2, params={"rank": 3})
    shapes = {n: tuple(p.shape) for n, p in built.ensemble.trainable().items() if not n.startswith("heads.")}
    outs = {"qkv": 144, "proj": 48}
    assert shapes == {f"blocks.{i}.attn.{e}.A_MRI": (2, 3, 48) for i in range(2) for e in outs} | {
        f"blocks.{i}.attn.{e}.B_MOR": (2, outs[e], 3) for i in range(2) for e in outs
    }
    assert built.ensemble.parameter_table()["lora"] == sum(2 * 3 * (48 + o) * 2 for o in outs.values())


def test_the_average_is_the_mean_of_the_members(lab: Any) -> None:
    built = lab.build("bert", "lora_ensemble", params={"biases": "member"})
    built.fit()
    averaged = dict(built.ensemble.averaged_model().named_parameters())
    members = [dict(built.ensemble.member_model(m).named_parameters()) for m in range(3)]
    moved = 0
    for name in (n for n in averaged if n in members[0]):
        torch.testing.assert_close(averaged[name], torch.stack([m[name] for m in members]).mean(0), atol=1e-6, rtol=1e-6)
        moved += not torch.equal(members[0][name], members[1][name])
    assert moved >= 8


def test_weight_decay_pulls_the_update_to_zero(lab: Any) -> None:
    start, built = (lab.build("bert", "lora_ensemble", targets="query") for _ in range(2))
    built.fit(lr=1e-4, weight_decay=1e3, head_lr=1e-9)  # pulls 10 % of the way a step; Adam moves 1e-4
    for linear, first in zip(built.ensemble.member_linears(), start.ensemble.member_linears(), strict=True):
        torch.testing.assert_close(linear.lora.A_MRI, 0.9**3 * first.lora.A_MRI, atol=4e-4, rtol=0)
        assert float(linear.lora.B_MOR.detach().abs().max()) < 4e-4


def test_bfloat16_casts_the_frozen_matrix_once(lab: Any) -> None:
    built = lab.build("bert", "lora_ensemble")
    built.fit()
    exact, layer = built.training_logits(), next(iter(built.ensemble.member_linears()))
    with torch.autocast("cpu", torch.bfloat16):
        rough = built.training_logits()
        first = layer._cast["weight_OI"]
        built.training_logits()
        assert layer._cast["weight_OI"] is first
    assert 0 < float((rough.float() - exact).abs().max()) < 0.1 * float(exact.std())


def test_lora_is_the_ensemble_of_one() -> None:
    text = "model: {name: x}\ndata: {name: y}\ntask: {name: text_classification}\nmethod: {name: lora}\n"
    method = load_recipe_text(text, "recipe").method
    assert (method.name, method.members, method.params["rank"], method.params["init"]) == ("lora_ensemble", 1, 8, "xavier")
