"""The decomposition of every target against float32 `torch.linalg.svd`, layer by layer, and its accuracy on hard matrices.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.clock import Spread, digits, interleave, paired, ratio
from benchmarks.speed.machine import device
from benchmarks.speed.tiers import Context
from sve_cli.errors import SveError
from sve_cli.factors import Factors, decompose_weight, in_out

LIMIT = 1e-6
SPECTRA = ("random", "condition 1e8", "repeated", "zeros")


def four_to_one(context: Context) -> dict[str, Any]:
    """The MLP layers of a network of width 384 (and 768 in the long form), both ways round."""
    return _speed(context, context.pick([(64, 16)], [(1536, 384), (384, 1536)], [(1536, 384), (384, 1536), (3072, 768)]), 0.5)


def square(context: Context) -> dict[str, Any]:
    """The attention layers."""
    return _speed(context, context.pick([(32, 32)], [(384, 384)] * 4, [(384, 384)] * 4 + [(768, 768)] * 2), 0.8)


def decompose_all(weights: list[Tensor]) -> list[Factors]:
    """Every weight as the store would decompose it, checks and files apart."""
    return [decompose_weight(w, f"layer {i}", "known") for i, w in enumerate(weights)]


def _speed(context: Context, shapes: list[tuple[int, int]], target: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.randn(shape, generator=generator) * 0.02).to(device()) for shape in shapes]
    actions = {
        "decompose": lambda turn: decompose_all(weights),
        "svd_float32": lambda turn: [torch.linalg.svd(w, full_matrices=False) for w in weights],
    }
    times = interleave(actions, context.repeats, context.seconds, context.clock)
    return {
        "setting": {"words": ", ".join(f"{o} x {i}" for o, i in shapes), "shapes": [list(s) for s in shapes]},
        "contenders": {n: {"seconds": Spread.of(t).document()} for n, t in times.items()},
        "ratios": [ratio("vs_svd", "against torch.linalg.svd in float32", paired(times, "decompose", "svd_float32"), target)],
    }


def spectrum(kind: str, rank: int) -> Tensor:
    """Singular values of a hard kind, float64, descending."""
    if kind == "condition 1e8":
        return torch.logspace(0, -8, rank, dtype=torch.float64)
    base = torch.linspace(1, 0.01, rank, dtype=torch.float64)
    if kind == "repeated":
        return base[:: max(rank // 4, 1)].repeat_interleave(max(rank // 4, 1))[:rank].sort(descending=True).values
    return torch.where(torch.arange(rank) >= rank // 2, torch.zeros(()).double(), base)


def hard_matrix(kind: str, shape: tuple[int, int]) -> Tensor:
    """A float32 matrix with that spectrum, up to the rounding of its numbers."""
    generator = torch.Generator().manual_seed(1)
    out, inner = shape
    rank = min(shape)
    if kind == "random":
        return 0.02 * torch.randn(shape, generator=generator)
    draws = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (out, inner))
    left, right = (torch.linalg.qr(d)[0] for d in draws)
    return ((left * spectrum(kind, rank)) @ right.T).float()


def figures(weight_OI: Tensor) -> dict[str, float]:
    """Errors of one decomposition against LAPACK's in float64.

    s: max |s - s64| / s_max; orthogonality: ‖VtV - I‖ (2-norm); diagonality: largest off-diagonal of (WV)t(WV) / s_max².
    """
    factors = decompose_weight(weight_OI, "accuracy")
    s64_R = torch.linalg.svdvals(weight_OI.double())
    basis = factors.basis.double()
    tall = weight_OI.double() if factors.side == "in" else weight_OI.double().T
    gram = (tall @ basis).T @ (tall @ basis)
    a_RI, b_OR = in_out(weight_OI, factors)
    top = float(s64_R.max())
    return {
        "s": float((factors.s_R.double() - s64_R).abs().max()) / top,
        "orthogonality": float(torch.linalg.matrix_norm(basis.T @ basis - torch.eye(len(s64_R)).double(), 2)),
        "diagonality": float((gram - gram.diagonal().diag()).abs().max()) / top**2,
        "reconstruction": float((b_OR.double() @ a_RI.double() - weight_OI.double()).norm() / weight_OI.double().norm()),
    }


def accuracy(context: Context) -> dict[str, Any]:
    """The worst figure over shapes and spectra, each of which must stay within 1e-6."""
    shapes = context.pick([(32, 8)], [(1536, 384), (384, 384)], [(1536, 384), (384, 1536), (384, 384), (768, 768)])
    found: dict[str, dict[str, float]] = {}
    for shape in shapes:
        for kind in SPECTRA:
            try:
                found[f"{shape[0]} x {shape[1]}, {kind}"] = figures(hard_matrix(kind, shape))
            except SveError as error:
                return {"skipped": f"{shape[0]} x {shape[1]}, {kind}: {error}"}
    keys = ("s", "orthogonality", "diagonality")
    titles = ("largest |s - s64| / s_max", "largest norm of VtV - I", "largest off-diagonal of (WV)t(WV) / s_max²")
    return {
        "setting": {"words": "; ".join(f"{o} x {i}" for o, i in shapes) + "; " + ", ".join(SPECTRA)},
        "contenders": {name: {k: digits(v, 2) for k, v in values.items()} for name, values in found.items()},
        "ratios": [ratio(k, t, [max(f[k] for f in found.values())], LIMIT) for k, t in zip(keys, titles, strict=True)],
    }
