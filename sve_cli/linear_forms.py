"""The ways to compute a member's layer, one function each, and the cost rule that picks.

Shapes: M members, N rows, O out, I in, R rank. W (O, I) = B (O, R) · A (R, I), where one of the two carries the singular
values and the other is orthogonal; gain_MR = max(s_m, 0) / S. A member is defined as W + B diag(gain - 1) A; every form
here equals it up to rounding (METHOD: arXiv 2601.22068, section 3; the residual form leaves W untouched). With the k largest
directions only (K of the R; gain 1 elsewhere), A_KI and B_OK are the first rows and columns, and the definition is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

Offsets = Sequence[Sequence[int]]  # of each member's off-diagonals
Form = Literal["factored", "materialised", "residual"]
# Multiply-adds that an off-diagonal takes for each number of h ("rows") or of B ("matrix"): benchmarks/band_forms.py on a CPU.
BAND_COST = {"rows": 120.0, "matrix": 200.0}
RIVALS: tuple[Form, ...] = ("residual", "materialised")


class _Factored(torch.autograd.Function):
    """y = ((x Aᵀ) ∘ gain) Bᵀ + bias. Keeps h = x Aᵀ only: that is all the gradient of Σ needs, besides the frozen factors."""

    @staticmethod
    def forward(ctx: Any, x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None) -> Tensor:
        m, n, _ = x_MNI.shape
        h_MNR = (_flat(x_MNI) @ a_RI.t()).view(m, n, -1)
        ctx.save_for_backward(h_MNR, gain_MR, a_RI, b_OR, bias_MO)
        return _Factored.output(h_MNR, gain_MR, b_OR, bias_MO)

    @staticmethod
    def output(h_MNR: Tensor, gain_MR: Tensor, b_OR: Tensor, bias_MO: Tensor | None) -> Tensor:
        """(h ∘ gain) Bᵀ + bias."""
        return _out(h_MNR * gain_MR.unsqueeze(1).to(h_MNR.dtype), b_OR, bias_MO)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        """What `forward` gave, to the bit, from what is kept of it."""
        h_MNR, gain_MR, _, b_OR, bias_MO = ctx.saved_tensors
        return _Factored.output(h_MNR, gain_MR, b_OR, bias_MO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_MNR, gain_MR, a_RI, b_OR, bias_MO = ctx.saved_tensors
        dy_MNO = grads[0].to(b_OR.dtype)
        dh_MNR = (_flat(dy_MNO) @ b_OR).view_as(h_MNR)
        dx = dgain = None
        if ctx.needs_input_grad[3]:
            dgain = _gain_gradient(dh_MNR, h_MNR, gain_MR.dtype)
        if ctx.needs_input_grad[0]:  # skipped below the first trainable layer
            dh_MNR *= gain_MR.unsqueeze(1).to(dh_MNR.dtype)
            dx = (_flat(dh_MNR) @ a_RI).view(*dy_MNO.shape[:2], -1)
        dbias = _bias_gradient(dy_MNO, bias_MO) if ctx.needs_input_grad[4] else None
        return dx, None, None, dgain, dbias


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _out(scaled_MNR: Tensor, b_OR: Tensor, bias_MO: Tensor | None) -> Tensor:
    """scaled Bᵀ + bias, (M, N, O)."""
    y_MNO = (_flat(scaled_MNR) @ b_OR.t()).view(*scaled_MNR.shape[:2], -1)
    if bias_MO is not None:
        y_MNO += bias_MO.unsqueeze(1).to(y_MNO.dtype)
    return y_MNO


def _gain_gradient(dh_MNR: Tensor, h_MNR: Tensor, dtype: torch.dtype) -> Tensor:
    return (dh_MNR * h_MNR).sum(1, dtype=_summed_in(dtype)).to(dtype)


def _bias_gradient(dy_MNO: Tensor, bias_MO: Tensor) -> Tensor:
    """The gradient of biases (M, O), or of one (1, O) that all members share."""
    dbias_MO = dy_MNO.sum(1, dtype=_summed_in(bias_MO.dtype))
    return (dbias_MO if len(bias_MO) == len(dbias_MO) else dbias_MO.sum(0, keepdim=True)).to(bias_MO.dtype)


def factored(x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None = None) -> Tensor:
    """((x Aᵀ) ∘ gain) Bᵀ + bias: one GEMM for all members on each side, no weight gradient anywhere."""
    return _Factored.apply(x_MNI.to(a_RI.dtype), a_RI, b_OR, gain_MR, bias_MO)


class _Materialised(torch.autograd.Function):
    """y = x W_mᵀ + bias with W_m = B diag(gain) A, or W + B diag(gain - 1) A; Σ's gradient from all rows or from some.

    It is the sum over rows of (x Aᵀ) ∘ (dy B), which either these two products give, or A dWᵀ B from dW = dyᵀ x: the cheaper.
    """

    @staticmethod
    def forward(
        ctx: Any, x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, weight_OI: Tensor | None, bias_MO: Tensor | None,
        rows_MK: Tensor | None, weight_K: float,
    ) -> Tensor:  # fmt: skip
        gain = (gain_MR if weight_OI is None else gain_MR - 1).to(b_OR.dtype)
        weight_MOI = (b_OR.unsqueeze(0) * gain.unsqueeze(1)) @ a_RI
        if weight_OI is not None:
            weight_MOI += weight_OI.to(weight_MOI.dtype)
        transposed = weight_MOI.transpose(1, 2)
        if bias_MO is None:
            y_MNO = torch.bmm(x_MNI, transposed)
        else:
            y_MNO = torch.baddbmm(bias_MO.unsqueeze(1).to(x_MNI.dtype), x_MNI, transposed)
        ctx.save_for_backward(x_MNI if rows_MK is None else _taken(x_MNI, rows_MK), weight_MOI, a_RI, b_OR, rows_MK, bias_MO)
        ctx.weight_K, ctx.gain_dtype = weight_K, gain_MR.dtype
        return y_MNO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_MKI, weight_MOI, a_RI, b_OR, rows_MK, bias_MO = ctx.saved_tensors
        dy_MNO = grads[0].to(b_OR.dtype)
        dx = dgain = None
        if ctx.needs_input_grad[0]:
            dx = torch.bmm(dy_MNO, weight_MOI)
        if ctx.needs_input_grad[3]:
            dy_MKO = dy_MNO if rows_MK is None else _taken(dy_MNO, rows_MK)
            dgain = (ctx.weight_K * _sigma_gradient(x_MKI, dy_MKO, a_RI, b_OR)).to(ctx.gain_dtype)
        dbias = _bias_gradient(dy_MNO, bias_MO) if ctx.needs_input_grad[5] else None
        return dx, None, None, dgain, None, dbias, None, None


def _taken(x_MNI: Tensor, rows_MK: Tensor) -> Tensor:
    """Each member's own rows, (M, K, I)."""
    return torch.stack([x_NI[rows_K] for x_NI, rows_K in zip(x_MNI, rows_MK, strict=True)])


def _sigma_gradient(x_MKI: Tensor, dy_MKO: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """The sum over rows of (x Aᵀ) ∘ (dy B), (M, R)."""
    m, k, inner = x_MKI.shape
    out, rank = b_OR.shape
    dtype = _summed_in(b_OR.dtype)
    by_rows, by_matrix = _gradient_flops(k, out, inner, rank)
    if by_rows <= by_matrix:
        h_MKR, dh_MKR = (_flat(x_MKI) @ a_RI.t()).view(m, k, -1), (_flat(dy_MKO) @ b_OR).view(m, k, -1)
        return h_MKR.mul_(dh_MKR).sum(1, dtype=dtype)
    dweight_MOI = torch.bmm(dy_MKO.transpose(1, 2), x_MKI)
    return (_flat(dweight_MOI) @ a_RI.t()).view(m, out, rank).mul_(b_OR).sum(1, dtype=dtype)


def materialised(
    x_MNI: Tensor,
    a_RI: Tensor,
    b_OR: Tensor,
    gain_MR: Tensor,
    weight_OI: Tensor | None = None,
    bias_MO: Tensor | None = None,
    rows_MK: Tensor | None = None,
    weight_K: float = 1.0,
) -> Tensor:
    """x (B diag(gain) A)ᵀ + bias: builds each member's matrix first; pays with many rows.

    Args:
        weight_OI: W, where the factors are those of the largest directions only; then x (W + B diag(gain - 1) A)ᵀ.
        rows_MK: the rows that Σ's gradient is taken from; None: all.
        weight_K: what each of them counts.
    """
    return _Materialised.apply(x_MNI.to(a_RI.dtype), a_RI, b_OR, gain_MR, weight_OI, bias_MO, rows_MK, weight_K)


def drawn_rows(n_rows: int, share: float, generator: torch.Generator) -> Tensor:
    """Rows (K,) for Σ's gradient: one of every 1/share (rounded) neighbours, the neighbourhoods shifted at random.

    Every row is as likely as any other, so that the sum over them times n_rows / K has the sum over all rows as its mean.
    """
    each = min(round(1 / share), n_rows)
    within = torch.randint(each, (n_rows // each,), generator=generator)
    shift = torch.randint(n_rows, (1,), generator=generator)
    return (torch.arange(len(within)) * each + within + shift) % n_rows


class _Residual(torch.autograd.Function):
    """y = x Wᵀ + ((x Aᵀ) ∘ (gain - 1)) Bᵀ + bias. Keeps h = x Aᵀ only."""

    @staticmethod
    def forward(
        ctx: Any, x_MNI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None
    ) -> Tensor:
        m, n, _ = x_MNI.shape
        x, change = _flat(x_MNI), (gain_MR - 1).to(x_MNI.dtype)
        h_MNR = (x @ a_RI.t()).view(m, n, -1)
        y = x @ weight_OI.t()
        y.addmm_(_flat(h_MNR * change.unsqueeze(1)), b_OR.t())
        y_MNO = y.view(m, n, -1)
        if bias_MO is not None:
            y_MNO += bias_MO.unsqueeze(1).to(y.dtype)
        ctx.save_for_backward(h_MNR, weight_OI, a_RI, b_OR, gain_MR, bias_MO)
        return y_MNO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_MNR, weight_OI, a_RI, b_OR, gain_MR, bias_MO = ctx.saved_tensors
        dy_MNO = grads[0].to(b_OR.dtype)
        dh_MNR = (_flat(dy_MNO) @ b_OR).view_as(h_MNR)
        dx = dgain = None
        if ctx.needs_input_grad[4]:
            dgain = _gain_gradient(dh_MNR, h_MNR, gain_MR.dtype)
        if ctx.needs_input_grad[0]:
            dh_MNR *= (gain_MR - 1).to(dh_MNR.dtype).unsqueeze(1)
            dx = (_flat(dy_MNO) @ weight_OI).addmm_(_flat(dh_MNR), a_RI).view(*dy_MNO.shape[:2], -1)
        dbias = _bias_gradient(dy_MNO, bias_MO) if ctx.needs_input_grad[5] else None
        return dx, None, None, None, dgain, dbias


def residual(
    x_MNI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, bias_MO: Tensor | None = None
) -> Tensor:
    """x Wᵀ + ((x Aᵀ) ∘ (gain - 1)) Bᵀ + bias: exactly W at gain 1, in any precision of the basis; cheap with few directions."""
    return _Residual.apply(x_MNI.to(a_RI.dtype), weight_OI.to(a_RI.dtype), a_RI, b_OR, gain_MR, bias_MO)


class _Banded(torch.autograd.Function):
    """y = (h ∘ gain + Σ_k shifted(h) ∘ c_k) Bᵀ + bias. Keeps h = x Aᵀ only, as the factored form does."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MNI: Tensor,
        a_RI: Tensor,
        b_OR: Tensor,
        gain_MR: Tensor,
        c_MKR: Tensor,
        offsets: Offsets,
        bias_MO: Tensor | None,
    ) -> Tensor:
        m, n, _ = x_MNI.shape
        h_MNR = (_flat(x_MNI) @ a_RI.t()).view(m, n, -1)
        ctx.save_for_backward(h_MNR, gain_MR, c_MKR, a_RI, b_OR, bias_MO)
        ctx.offsets = offsets
        return _Banded.output(h_MNR, gain_MR, c_MKR, offsets, b_OR, bias_MO)

    @staticmethod
    def output(
        h_MNR: Tensor, gain_MR: Tensor, c_MKR: Tensor, offsets: Offsets, b_OR: Tensor, bias_MO: Tensor | None
    ) -> Tensor:  # fmt: skip
        """(h ∘ gain + Σ_k shifted(h) ∘ c_k) Bᵀ + bias."""
        mixed, c = h_MNR * gain_MR.unsqueeze(1).to(h_MNR.dtype), c_MKR.to(h_MNR.dtype)
        for i, k, to, source in _places(offsets, h_MNR.shape[2]):
            mixed[i, :, to].addcmul_(h_MNR[i, :, source], c[i, k, to].unsqueeze(-2))
        return _out(mixed, b_OR, bias_MO)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        """What `forward` gave, to the bit, from what is kept of it."""
        h_MNR, gain_MR, c_MKR, _, b_OR, bias_MO = ctx.saved_tensors
        return _Banded.output(h_MNR, gain_MR, c_MKR, ctx.offsets, b_OR, bias_MO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_MNR, gain_MR, c_MKR, a_RI, b_OR, bias_MO = ctx.saved_tensors
        dy_MNO = grads[0].to(b_OR.dtype)
        dmixed_MNR = (_flat(dy_MNO) @ b_OR).view_as(h_MNR)
        dgain = _gain_gradient(dmixed_MNR, h_MNR, gain_MR.dtype)
        dc_MKR, dx = _band_gradient(dmixed_MNR, h_MNR, c_MKR, ctx.offsets), None
        if ctx.needs_input_grad[0]:  # skipped below the first trainable layer
            dx = (_flat(_by_core(dmixed_MNR, gain_MR, c_MKR, ctx.offsets)) @ a_RI).view(*dy_MNO.shape[:2], -1)
        dbias = _bias_gradient(dy_MNO, bias_MO) if ctx.needs_input_grad[6] else None
        return dx, None, None, dgain, dc_MKR, None, dbias


def _places(offsets: Offsets, size: int) -> Iterator[tuple[int | slice, int, slice, slice]]:
    """Members, band, places r and places r + offset mod size, which are two runs of neighbours each."""
    for k, column in enumerate(zip(*offsets, strict=True)):
        together = len(set(column)) == 1
        for i, offset in [(slice(None), column[0])] if together else enumerate(column):
            yield i, k, slice(0, size - offset), slice(offset, size)
            yield i, k, slice(size - offset, size), slice(0, offset)


def _by_core(x_MNR: Tensor, gain_MR: Tensor, c_MKR: Tensor, offsets: Offsets) -> Tensor:
    """x (diag(gain) + C), (M, N, R)."""
    y_MNR, c = x_MNR * gain_MR.unsqueeze(1).to(x_MNR.dtype), c_MKR.to(x_MNR.dtype)
    for i, k, to, source in _places(offsets, x_MNR.shape[2]):
        y_MNR[i, :, source].addcmul_(x_MNR[i, :, to], c[i, k, to].unsqueeze(-2))
    return y_MNR


def _band_gradient(left_MNR: Tensor, right_MNR: Tensor, c_MKR: Tensor, offsets: Offsets) -> Tensor:
    """The entries of C in leftᵀ right, (M, K, R)."""
    dc_MKR, exact = torch.empty_like(c_MKR), _summed_in(c_MKR.dtype)
    for i, k, to, source in _places(offsets, left_MNR.shape[2]):
        dc_MKR[i, k, to] = (left_MNR[i, :, to] * right_MNR[i, :, source]).sum(-2, dtype=exact).to(dc_MKR.dtype)
    return dc_MKR


def banded(
    x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, c_MKR: Tensor, offsets: Offsets, bias_MO: Tensor | None = None
) -> Tensor:
    """x (B (diag(gain) + C) A)ᵀ + bias; C holds c_MKR[m, k, r] at (r, r + offsets[m][k] mod R)."""
    return _Banded.apply(x_MNI.to(a_RI.dtype), a_RI, b_OR, gain_MR, c_MKR, offsets, bias_MO)


class _BandedMatrix(torch.autograd.Function):
    """y = x W_mᵀ + bias with W_m = B (diag(gain) + C) A. The gradients of Σ and C are entries of Bᵀ dW Aᵀ."""

    @staticmethod
    def forward(
        ctx: Any, x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, c_MKR: Tensor, offsets: Offsets,
        bias_MO: Tensor | None,
    ) -> Tensor:  # fmt: skip
        weight_MOI = _by_core(b_OR.expand(len(x_MNI), -1, -1), gain_MR, c_MKR, offsets) @ a_RI
        y_MNO = torch.bmm(x_MNI, weight_MOI.transpose(1, 2))
        if bias_MO is not None:
            y_MNO += bias_MO.unsqueeze(1).to(y_MNO.dtype)
        ctx.save_for_backward(x_MNI, weight_MOI, gain_MR, c_MKR, a_RI, b_OR, bias_MO)
        ctx.offsets = offsets
        return y_MNO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_MNI, weight_MOI, gain_MR, c_MKR, a_RI, b_OR, bias_MO = ctx.saved_tensors
        dy_MNO = grads[0].to(b_OR.dtype)
        dcore_MOR = torch.bmm(dy_MNO.transpose(1, 2), x_MNI) @ a_RI.t()
        dgain = _gain_gradient(dcore_MOR, b_OR.unsqueeze(0), gain_MR.dtype)
        dc_MKR = _band_gradient(b_OR.expand_as(dcore_MOR), dcore_MOR, c_MKR, ctx.offsets)
        dx = torch.bmm(dy_MNO, weight_MOI) if ctx.needs_input_grad[0] else None
        dbias = _bias_gradient(dy_MNO, bias_MO) if ctx.needs_input_grad[6] else None
        return dx, None, None, dgain, dc_MKR, None, dbias


def banded_matrix(
    x_MNI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_MR: Tensor, c_MKR: Tensor, offsets: Offsets, bias_MO: Tensor | None = None
) -> Tensor:
    """What `banded` is, by way of each member's matrix: a band's passes are over O rows and not over N."""
    return _BandedMatrix.apply(x_MNI.to(a_RI.dtype), a_RI, b_OR, gain_MR, c_MKR, offsets, bias_MO)


def merged_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, gain_R: Tensor) -> Tensor:
    """The definition of one member's matrix: W + B diag(gain - 1) A, float32."""
    return torch.addmm(weight_OI.float(), b_OR.float() * (gain_R.float() - 1), a_RI.float())


def _gradient_flops(rows: float, out: int, inner: int, rank: int) -> tuple[float, float]:
    """Multiply-adds of Σ's gradient from so many rows: by (x Aᵀ) ∘ (dy B), and by way of dyᵀ x."""
    return rows * rank * (out + inner), rows * out * inner + rank * out * inner


def training_flops(form: Form, n_rows: int, out: int, inner: int, rank: int | None = None, share: float = 1.0) -> float:
    """Multiply-adds of one member's forward and backward pass (input and Σ gradients) over `n_rows` rows.

    `rank`: how many of the largest directions train; None: all. The factored form always takes all.
    `share`: of the rows that the materialised form takes Σ's gradient from; the others need them all anyway.
    """
    full = min(out, inner)
    k = full if rank is None else rank
    if form == "materialised":  # forward and input gradient, building W_m, Σ's gradient
        return 2.0 * n_rows * out * inner + 1.0 * out * k * inner + min(_gradient_flops(share * n_rows, out, inner, k))
    if form == "factored":
        return 2.0 * n_rows * full * (out + inner)
    return 2.0 * n_rows * k * (out + inner) + 2.0 * n_rows * out * inner


@lru_cache(maxsize=4096)
def cheapest(n_rows: int, out: int, inner: int, rank: int | None = None, share: float = 1.0) -> Form:
    """The form with fewest multiply-adds for one member's `n_rows` rows, if it saves 5 % over the one named first.

    Order: factored (fewest passes over memory), residual (the cheapest with few directions, never with all), materialised.
    """
    best: Form = "factored"
    for form in RIVALS:
        if training_flops(form, n_rows, out, inner, rank, share) < 0.95 * training_flops(best, n_rows, out, inner, rank, share):
            best = form
    return best


def cheapest_banded(n_rows: int, out: int, inner: int, bands: int) -> Literal["factored", "materialised"]:
    """The quicker of `banded` and `banded_matrix` for one member's `n_rows` rows: multiply-adds, and what the bands cost beside."""
    rank = min(out, inner)
    by_rows = training_flops("factored", n_rows, out, inner) + BAND_COST["rows"] * bands * rank * n_rows
    by_matrix = 3.0 * n_rows * out * inner + 2.0 * out * rank * inner + BAND_COST["matrix"] * bands * rank * out
    return "materialised" if by_matrix < by_rows else "factored"
