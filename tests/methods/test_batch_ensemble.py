"""BatchEnsemble: its arithmetic, its start, convolutions and decay.

Shapes: M members, O out, I in, K input channels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sve_cli.backbone import LinearView
from sve_cli.ensemble import MemberContext
from sve_cli.methods.batch_ensemble import BatchLinear, Params


def test_a_layer_by_hand(small_view: LinearView) -> None:
    context = MemberContext((0, 1))
    layer = BatchLinear(small_view, context, Params(), 2, 0)
    assert layer.bias_MO is not None
    with torch.no_grad():
        layer.r_MK.copy_(torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 5.0]]))
        layer.s_MO.copy_(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
        layer.bias_MO[0] = torch.tensor([0.0, 1.0])
    x_MI = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    assert layer(x_MI).tolist() == [[6.0, 3.0], [16.0, 17.0]]
    assert layer.merged(0)[0].tolist() == [[2.0, 2.0, 0.0], [0.0, 1.0, -3.0]]
    assert layer.merged(1)[0].tolist() == [[2.0, 2.0, 0.0], [0.0, -1.5, 45.0]]
    assert layer.averaged()[0].tolist() == [[2.0, 2.0, 0.0], [0.0, -0.25, 21.0]]
    context.members = (1,)
    assert layer(x_MI[:1]).tolist() == [[16.0, 17.0]]


def test_the_start_is_near_one_or_a_sign() -> None:
    view = LinearView("layer", "linear", nn.Linear(3000, 2000, bias=False).requires_grad_(False))
    near = BatchLinear(view, MemberContext((0, 1)), Params(init_std=0.05), 2, 0)
    for vector in (near.r_MK, near.s_MO):
        assert float(vector.detach().mean()) == pytest.approx(1.0, abs=0.005)
        assert float(vector.detach().std()) == pytest.approx(0.05, rel=0.05)
        assert not torch.equal(vector[0], vector[1])
    signs = BatchLinear(view, MemberContext((0, 1)), Params(init="signs"), 2, 0)
    for vector in (signs.r_MK, signs.s_MO):
        assert set(vector.detach().unique().tolist()) == {-1.0, 1.0}
        assert abs(float(vector.detach().mean())) < 0.06
    assert float(signs.merged(0)[0].abs().sub(view.weight_OI.abs()).abs().max()) == 0.0


def test_a_convolution_scales_whole_channels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 5, 3, padding=1).requires_grad_(False)
    layer = BatchLinear(LinearView("layer", "conv2d", conv), MemberContext((0, 1)), Params(init_std=0.3), 2, 0)
    assert layer.r_MK.shape == (2, 4)
    x = torch.randn(2, 4, 6, 6)
    for m, y in enumerate(layer(x)):
        scaled = x[m] * layer.r_MK[m].reshape(-1, 1, 1)
        expected = F.conv2d(scaled.unsqueeze(0), conv.weight, padding=1)[0] * layer.s_MO[m].reshape(-1, 1, 1)
        torch.testing.assert_close(y, expected + conv.bias.reshape(-1, 1, 1), atol=1e-5, rtol=1e-5)


def test_trained_numbers_are_two_vectors_a_layer(lab: Any) -> None:
    built = lab.build("vit", "batch_ensemble", members=2, params={"biases": "frozen"})
    shapes = {n: tuple(p.shape) for n, p in built.ensemble.trainable().items() if n.startswith("blocks.0.mlp")}
    assert shapes == {
        "blocks.0.mlp.fc1.r_MK": (2, 48),
        "blocks.0.mlp.fc1.s_MO": (2, 192),
        "blocks.0.mlp.fc2.r_MK": (2, 192),
        "blocks.0.mlp.fc2.s_MO": (2, 48),
    }
    assert set(built.ensemble.parameter_table()) == {"scale", "head"}


@pytest.mark.parametrize("init", ["gaussian", "signs"])
def test_weight_decay_pulls_toward_the_checkpoint_or_the_signs(lab: Any, init: str) -> None:
    start, built = (lab.build("bert", "batch_ensemble", params={"init": init}) for _ in range(2))
    built.fit(lr=1e-4, weight_decay=1e3, head_lr=1e-9, bias_lr=1e-4)  # pulls 10 % of the way a step; Adam moves 1e-4
    for linear, first in zip(built.ensemble.member_linears(), start.ensemble.member_linears(), strict=True):
        for name in ("r_MK", "s_MO"):
            before, after = getattr(first, name).detach(), getattr(linear, name).detach()
            expected = 1 + 0.9**3 * (before - 1) if init == "gaussian" else before
            torch.testing.assert_close(after, expected, atol=4e-4, rtol=0)


def test_small_changes_survive_bfloat16(small_view: LinearView) -> None:
    """Near 1 bfloat16 knows steps of 1/128 only: a vector rounded to it would not see a change of 1/1000."""
    layer = BatchLinear(small_view, MemberContext((0,)), Params(init_std=0.0), 1, 0)
    assert layer.bias_MO is not None
    with torch.no_grad():
        layer.s_MO[0, 0] = 1.003
        layer.bias_MO[0, 0] = -256.0
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.tensor([[100.0, 78.0, 0.0]]))  # 256 before the scale
    assert y.dtype == torch.bfloat16
    assert float(y[0, 0].detach()) == pytest.approx(0.768, rel=0.01)
