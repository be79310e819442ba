"""Every form of a member's layer against its definition, W + B diag(gain - 1) A.

Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sve_cli import linear_forms
from sve_cli.factors import decompose_weight, in_out

SHAPES = [(7, 5), (5, 7), (6, 6)]  # (O, I)


def setting(shape: tuple[int, int], dtype: torch.dtype, rows: int = 4) -> tuple[Tensor, ...]:
    """x_MNI, W, A, B, gain_MR and bias_MO; in float64, A is orthogonal to float64 precision."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(shape, generator=generator)
    a_RI, b_OR = in_out(weight_OI, decompose_weight(weight_OI, "layer"))
    if dtype == torch.float64:
        u_OR, s_R, a_RI = torch.linalg.svd(weight_OI.double(), full_matrices=False)
        weight_OI, b_OR = weight_OI.double(), u_OR * s_R
    x_MNI = torch.randn((3, rows, shape[1]), generator=generator, dtype=dtype)
    gain_MR = torch.rand((3, min(shape)), generator=generator, dtype=dtype) * 2
    bias_MO = torch.randn((3, shape[0]), generator=generator, dtype=dtype)
    return x_MNI, weight_OI, a_RI, b_OR, gain_MR, bias_MO


def defined(x_MNI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor) -> Tensor:
    """The definition, one member after another."""
    weights = [weight_OI + b_OR @ torch.diag(g - 1) @ a_RI for g in gain_MR]
    return torch.stack([x @ w.T + b for x, w, b in zip(x_MNI, weights, bias_MO, strict=True)])


def computed(form: str, x_MNI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor) -> Tensor:
    if form == "factored":
        return linear_forms.factored(x_MNI, a_RI, b_OR, gain_MR, bias_MO)
    if form == "materialised":
        return linear_forms.materialised(x_MNI, a_RI, b_OR, gain_MR, None, bias_MO)
    if form == "merged":
        return linear_forms.materialised(x_MNI, a_RI, b_OR, gain_MR, weight_OI, bias_MO)
    return linear_forms.residual(x_MNI, weight_OI, a_RI, b_OR, gain_MR, bias_MO)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["factored", "materialised", "merged", "residual"])
@pytest.mark.parametrize("rows", [4, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_forms_and_their_gradients_are_the_definition(
    shape: tuple[int, int], form: str, rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    results = []
    for compute in (defined, lambda *a: computed(form, *a)):  # by both routes of the materialised form's Σ gradient
        x_MNI, weight_OI, a_RI, b_OR, gain_MR, bias_MO = setting(shape, dtype, rows)
        for tensor in (x_MNI, gain_MR, bias_MO):
            tensor.requires_grad_(True)
        y_MNO = compute(x_MNI, weight_OI, a_RI, b_OR, gain_MR, bias_MO)
        (y_MNO.sin() * torch.arange(1, 4, dtype=dtype).reshape(3, 1, 1)).sum().backward()
        results.append([y_MNO.detach(), x_MNI.grad, gain_MR.grad, bias_MO.grad])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", ["factored", "materialised", "merged", "residual"])
def test_gradients_by_finite_differences(form: str) -> None:
    x_MNI, weight_OI, a_RI, b_OR, gain_MR, bias_MO = setting((7, 5), torch.float64)

    def f(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return computed(form, x, weight_OI, a_RI, b_OR, gain, bias)

    assert torch.autograd.gradcheck(f, tuple(t.requires_grad_(True) for t in (x_MNI, gain_MR, bias_MO)))


def test_one_bias_may_serve_all_members_and_may_be_absent() -> None:
    x_MNI, _, a_RI, b_OR, gain_MR, bias_MO = setting((7, 5), torch.float32)
    bare = linear_forms.factored(x_MNI, a_RI, b_OR, gain_MR)
    torch.testing.assert_close(linear_forms.factored(x_MNI, a_RI, b_OR, gain_MR, bias_MO[:1]), bare + bias_MO[:1])


def test_the_residual_form_is_the_checkpoint_to_the_bit_at_gain_one() -> None:
    x_MNI, weight_OI, a_RI, b_OR, gain_MR, _ = setting((7, 5), torch.float32)
    rough = (a_RI.bfloat16().float(), b_OR.bfloat16().float())
    assert torch.equal(linear_forms.residual(x_MNI, weight_OI, *rough, torch.ones_like(gain_MR)), x_MNI @ weight_OI.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_weight_is_the_definition(shape: tuple[int, int]) -> None:
    _, weight_OI, a_RI, b_OR, gain_MR, _ = setting(shape, torch.float32)
    u_OR, s_R, v_RI = torch.linalg.svd(weight_OI.double(), full_matrices=False)
    merged_OI = linear_forms.merged_weight(weight_OI, a_RI, b_OR, gain_MR[0])
    torch.testing.assert_close(merged_OI.double(), (u_OR * (s_R * gain_MR[0].double())) @ v_RI, atol=1e-5, rtol=1e-5)
    assert torch.equal(linear_forms.merged_weight(weight_OI, a_RI, b_OR, torch.ones(len(s_R))), weight_OI)


def test_the_cost_rule_counts_what_the_forms_multiply() -> None:
    # Square d = 64, N rows: factored 2·N·64·128, materialised 3·N·64² + 2·64³: equal at N = 128. Below N = 64 its Σ gradient comes
    # from x Aᵀ and dy B, which takes 2·N·64² and not N·64² + 64³.
    assert linear_forms.training_flops("factored", 10, 64, 64) == 2 * 10 * 64 * 128
    assert linear_forms.training_flops("materialised", 100, 64, 64) == 3 * 100 * 64**2 + 2 * 64**3
    assert linear_forms.training_flops("materialised", 10, 64, 64) == 4 * 10 * 64**2 + 64**3
    assert linear_forms.training_flops("materialised", 1000, 64, 64, 16) == 2500 * 64**2 + 16 * 64**2
    assert linear_forms.training_flops("materialised", 1000, 64, 64, None, 0.25) == 2250 * 64**2 + 2 * 64**3
    assert linear_forms.training_flops("residual", 10, 64, 64) == 2 * 10 * 64 * 128 + 2 * 10 * 64**2
    assert linear_forms.cheapest(100, 64, 64) == "factored"
    assert linear_forms.cheapest(1000, 64, 64) == "materialised"
    assert linear_forms.cheapest(1_000_000, 256, 64) == "factored"  # 4:1 layers never pay for materialising
