"""The ways to compute a member's layer, one function each, and the cost rule that picks.

Shapes: M members, N rows, O out, I in, R rank. W (O, I) = B (O, R) · A (R, I), where one of the two carries the singular
values and the other is orthogonal; gain_MR = max(s_m, 0) / S. A member is defined as W + B diag(gain - 1) A; every form
here equals it up to rounding (METHOD: arXiv 2601.22068, section 3; the residual form leaves W untouched). With the k largest
directions only (K of the R; gain 1 elsewhere), A_KI and B_OK are the first rows and columns, and the definition is the same.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Form = Literal["factored", "materialised", "residual"]
RIVALS: tuple[Form, ...] = ("residual", "materialised")


class _Factored(torch.autograd.Function):
    """y = ((x Aᵀ) ∘ gain) Bᵀ + bias. Keeps h = x Aᵀ only: that is all the gradient of Σ needs, besides the frozen factors."""

    @staticmethod
    def forward(ctx: Any, x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None) -> Tensor:
        m, n, _ = x_MNI.shape
        h_MNR = (x_MNI.reshape(m * n, -1) @ a_RI.t()).view(m, n, -1)
        scaled = h_MNR * gain_MR.unsqueeze(1).to(h_MNR.dtype)
        y_MNO = (scaled.view(m * n, -1) @ b_OR.t()).view(m, n, -1)
        if bias_MO is not None:
            y_MNO += bias_MO.unsqueeze(1).to(y_MNO.dtype)
        ctx.save_for_backward(h_MNR, gain_MR, a_RI, b_OR)
        ctx.dtypes = (x_MNI.dtype, None if bias_MO is None else bias_MO.dtype)
        return y_MNO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_MNR, gain_MR, a_RI, b_OR = ctx.saved_tensors
        dy_MNO = grads[0]
        m, n, _ = dy_MNO.shape
        x_dtype, bias_dtype = ctx.dtypes
        dy = dy_MNO.reshape(m * n, -1).to(b_OR.dtype)
        dh_MNR = (dy @ b_OR).view(m, n, -1)
        dx = dgain = dbias = None
        if ctx.needs_input_grad[3]:
            dgain = (dh_MNR * h_MNR).sum(1, dtype=torch.promote_types(gain_MR.dtype, torch.float32)).to(gain_MR.dtype)
        if bias_dtype is not None and ctx.needs_input_grad[4]:
            dbias = dy_MNO.sum(1, dtype=torch.promote_types(bias_dtype, torch.float32)).to(bias_dtype)
        if ctx.needs_input_grad[0]:  # skipped below the first trainable layer
            dh_MNR *= gain_MR.unsqueeze(1).to(dh_MNR.dtype)
            dx = (dh_MNR.view(m * n, -1) @ a_RI).view(m, n, -1).to(x_dtype)
        return dx, None, None, dgain, dbias


def factored(x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None = None) -> Tensor:
    """((x Aᵀ) ∘ gain) Bᵀ + bias: one GEMM for all members on each side, no weight gradient anywhere."""
    return _Factored.apply(x_MNI.to(a_RI.dtype), a_RI, b_OR, gain_MR, bias_MO)


def materialised(x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, weight_OI: Tensor | None = None) -> Tensor:
    """x (B diag(gain) A)ᵀ: builds each member's matrix first; pays with many rows on square layers.

    `weight_OI`: W, where the factors are those of the largest directions only; then x (W + B diag(gain - 1) A)ᵀ.
    """
    weight_MOI = (b_OR.unsqueeze(0) * (gain_MR if weight_OI is None else gain_MR - 1).unsqueeze(1).to(b_OR.dtype)) @ a_RI
    if weight_OI is not None:
        weight_MOI = weight_MOI + weight_OI.to(weight_MOI.dtype)
    return torch.bmm(x_MNI.to(weight_MOI.dtype), weight_MOI.transpose(1, 2))


def residual(x_MNI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor) -> Tensor:
    """x Wᵀ + ((x Aᵀ) ∘ (gain - 1)) Bᵀ: exactly W at gain 1, whatever the precision of the basis; cheap with few directions."""
    m, n, _ = x_MNI.shape
    x = x_MNI.reshape(m * n, -1).to(a_RI.dtype)
    h_MNR = (x @ a_RI.t()).view(m, n, -1)
    scaled = h_MNR * (gain_MR - 1).unsqueeze(1).to(h_MNR.dtype)
    return torch.addmm(x @ weight_OI.t().to(x.dtype), scaled.view(m * n, -1), b_OR.t()).view(m, n, -1)


def merged_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_R: Tensor) -> Tensor:
    """The definition of one member's matrix: W + B diag(gain - 1) A, float32."""
    return torch.addmm(weight_OI.float(), b_OR.float() * (gain_R.float() - 1), a_RI.float())


def training_flops(form: Form, n_rows: int, out: int, inner: int, rank: int | None = None) -> float:
    """Multiply-adds of one member's forward and backward pass (input and Σ gradients) over `n_rows` rows.

    `rank`: how many of the largest directions train; None: all. The factored form always takes all.
    """
    full = min(out, inner)
    k = full if rank is None else rank
    if form == "materialised":  # forward, input gradient and weight gradient, plus building W and reducing its gradient
        return 3.0 * n_rows * out * inner + 2.0 * out * k * inner
    if form == "factored":
        return 2.0 * n_rows * full * (out + inner)
    return 2.0 * n_rows * k * (out + inner) + 2.0 * n_rows * out * inner


def cheapest(n_rows: int, out: int, inner: int, rank: int | None = None) -> Form:
    """The form with fewest multiply-adds for one member's `n_rows` rows, if it saves 5 % over the one named first.

    Order: factored (fewest passes over memory), residual (the cheapest with few directions, never with all), materialised.
    """
    best: Form = "factored"
    for form in RIVALS:
        if training_flops(form, n_rows, out, inner, rank) < 0.95 * training_flops(best, n_rows, out, inner, rank):
            best = form
    return best
