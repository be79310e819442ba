"""W = U diag(s) Vt through the float64 Gram matrix of the short side, its checks, and the product with W.

Only the short orthogonal side and s are kept. The other side times diag(s) is W V (or Ut W), so nothing is ever divided by a
small s. The basis is square and orthogonal, which makes `B A = W` exact up to rounding whatever the basis: reconstruction
alone proves nothing, so `verify` also checks the singular values, the orthogonality and that (W V)t (W V) is diagonal.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from sve_cli.errors import CheckpointError

ALGORITHM = "gram-eigh-f64/1"
STORE_DTYPE = torch.float32

# Every figure of `Verification`; float32 rounding of the factors alone measures 1e-8 to 7e-8.
LIMIT = 1e-6
NEAR_EQUAL_GAP = 1e-4
# Below this share of s_max the roots of the Gram matrix's eigenvalues keep fewer digits than float32.
REFINE_BELOW = 1e-4

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Factors:
    """W (O, I) = U diag(s) Vt, kept as its short orthogonal side.

    Attributes:
        basis: float32. Side "in" (I <= O): V, shape (I, R) with R = I. Side "out" (O < I): U, shape (O, R) with R = O.
        s_R: singular values, float32, descending, >= 0.
        side: which of W's two sides `basis` belongs to.
        shape: (O, I).
        key: `weight_key` of W.
    """

    basis: Tensor
    s_R: Tensor
    side: Side
    shape: tuple[int, int]
    key: str


@dataclass(frozen=True)
class Verification:
    """How far the factors are from a singular value decomposition of W, all relative, all computed in float64.

    Attributes:
        s_error: max |norms of the columns of W V (rows of Ut W) - s| / s_max.
        orthogonality: max |Vt V - I|.
        diagonality: largest off-diagonal of (W V)t (W V), over s_max squared.
        reconstruction: ||B A - W|| / ||W|| (Frobenius) with `in_out`'s float32 A and B.
    """

    s_error: float
    orthogonality: float
    diagonality: float
    reconstruction: float


@dataclass(frozen=True)
class LayerStatistics:
    """What a decomposed layer looks like.

    Attributes:
        shape: (O, I).
        rank: numerical rank, values above s_max * max(O, I) * float32 epsilon.
        energy_top10: share of sum s^2 in the largest 10 % of the values; 0 for a zero weight.
        condition: s_max / s_min, inf when s_min is 0.
        near_equal: neighbours with a relative gap below 1e-4: their vectors are free to rotate between machines.
        seconds: time to load, or to decompose, check and write.
    """

    shape: tuple[int, int]
    rank: int
    energy_top10: float
    condition: float
    near_equal: int
    seconds: float


def side_of(shape: tuple[int, int]) -> Side:
    """Which side of an (O, I) weight is the short one; the input side when they are equal."""
    return "in" if shape[1] <= shape[0] else "out"


def check_weight(weight_OI: Tensor, name: str) -> None:
    """Refuse what is not a matrix of floating-point numbers.

    Raises:
        CheckpointError: wrong number of dimensions, an empty matrix, or integers (a quantised layer).
    """
    if weight_OI.ndim != 2 or weight_OI.numel() == 0:
        raise CheckpointError(
            f"The weight of layer '{name}' has shape {tuple(weight_OI.shape)}; a decomposition needs a non-empty (out, in) matrix.",
            "Leave the layer out with method.exclude.",
        )
    if not weight_OI.is_floating_point():
        raise CheckpointError(
            f"The weight of layer '{name}' is stored as {weight_OI.dtype}, which is quantised.",
            "Use the checkpoint's floating-point version, or leave the layer out with method.exclude.",
        )


def decompose_weight(weight_OI: Tensor, name: str, key: str | None = None) -> Factors:
    """Decompose a weight: float64 eigh of the Gram matrix of the short side, on the weight's device; factors on the CPU.

    Squaring loses what is below 1.5e-8 s_max, so the vectors of small values are diagonalised a second time on their own. The
    sign of each basis vector makes its largest component positive. When eigh does not converge: LAPACK's SVD in float64 on
    the CPU. `key`: the weight's `weight_key`, where it is known already.

    Raises:
        CheckpointError: the weight is no floating-point matrix, is not finite, or cannot be decomposed.
    """
    check_weight(weight_OI, name)
    weight = weight_OI.detach().to(STORE_DTYPE)
    _check_finite(weight, name)
    shape = (weight.shape[0], weight.shape[1])
    side = side_of(shape)
    s_R, rows = _right_vectors(_double(weight if side == "in" else weight.T), name)
    s_R, order = s_R.sort(descending=True, stable=True)
    rows = rows[order]
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    rows = torch.where(largest < 0, -rows, rows).to("cpu", STORE_DTYPE)
    return Factors(rows.T.contiguous(), s_R.to("cpu", STORE_DTYPE), side, shape, key or weight_key(weight))


def _check_finite(weight: Tensor, name: str) -> None:
    low, high = weight.aminmax()  # Both pass NaN on; four times as fast as isfinite().all().
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        count = int((~torch.isfinite(weight)).sum())
        raise CheckpointError(
            f"The weight of layer '{name}' holds {count} values that are not finite (of {weight.numel()}).",
            "The checkpoint is damaged, or overflowed when it was converted; download or convert it again.",
        )


def _double(tensor: Tensor) -> Tensor:
    """In float64, on a device that has it (Apple's GPU does not)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _right_vectors(tall: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Singular values and right vectors (as rows) of a tall float64 matrix, in no promised order."""
    try:
        values, vectors = torch.linalg.eigh(tall.T @ tall)
        s_R = values.clamp(min=0).sqrt()
        small = int((s_R <= REFINE_BELOW * s_R[-1]).sum())  # Ascending: the small ones come first.
        if 0 < small < len(s_R):
            image = tall @ vectors[:, :small]
            values, rotation = torch.linalg.eigh(image.T @ image)
            s_R[:small] = values.clamp(min=0).sqrt()
            vectors[:, :small] = vectors[:, :small] @ rotation
        return s_R, vectors.T
    except torch.linalg.LinAlgError:
        try:
            _, s_R, rows = torch.linalg.svd(tall.cpu(), full_matrices=False)
            return s_R, rows
        except torch.linalg.LinAlgError as error:
            raise CheckpointError(
                f"The weight of layer '{name}' cannot be decomposed: eigh and LAPACK's SVD both failed ({error}).",
                "Leave the layer out with method.exclude.",
            ) from error


def verify(weight_OI: Tensor, factors: Factors, name: str) -> Verification:
    """Check the factors against the weight in float64, on the weight's device.

    Raises:
        CheckpointError: a figure is above its limit (1e-6 each); names the layer.
    """
    weight = _double(weight_OI.detach().to(STORE_DTYPE))
    product = _product(weight, factors)
    gram = product.T @ product if factors.side == "in" else product @ product.T
    basis = _double(factors.basis.to(weight.device))
    identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    s_R = _double(factors.s_R.to(weight.device))
    scale = float(s_R.max()) or 1.0
    a_RI, b_OR = _pair(product, factors)
    difference = torch.linalg.matrix_norm(b_OR.double() @ a_RI.double() - weight)
    result = Verification(
        s_error=float((gram.diagonal().sqrt() - s_R).abs().max()) / scale,
        orthogonality=float((basis.T @ basis - identity).abs().max()),
        diagonality=float((gram - gram.diagonal().diag()).abs().max()) / scale**2,
        reconstruction=float(difference) / (float(torch.linalg.matrix_norm(weight)) or 1.0),
    )
    _judge(result, name)
    return result


def _judge(result: Verification, name: str) -> None:
    # Not "value > LIMIT": a NaN must fail too.
    broken = [f"{key} {value:.1e}" for key, value in asdict(result).items() if not value <= LIMIT]
    if broken:
        raise CheckpointError(
            f"The decomposition of layer '{name}' failed its check: {', '.join(broken)} (limit {LIMIT:.0e}).",
            "Please report the layer's shape and your torch version; meanwhile leave it out with method.exclude.",
        )


def in_out(weight_OI: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """A (R, I) and B (O, R) in float32 on the weight's device, with W = B A up to rounding.

    Side "in": A = Vt, B = W V = U diag(s). Side "out": A = Ut W = diag(s) Vt, B = U. The product is computed in float64 and
    rounded once, so that TF32 or another machine's summation order cannot move it. Never divides by s.
    """
    a_RI, b_OR = _pair(_product(_double(weight_OI.detach().to(STORE_DTYPE)), factors), factors)
    return a_RI.to(weight_OI.device), b_OR.to(weight_OI.device)


def _product(weight: Tensor, factors: Factors) -> Tensor:
    """The float64 product of a float64 weight and the basis: W V (O, R) or Ut W (R, I)."""
    basis = factors.basis.to(weight.device).double()
    return weight @ basis if factors.side == "in" else basis.T @ weight


def _pair(product: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """A (R, I) and B (O, R) in float32 from `_product`."""
    basis, other = factors.basis.to(product.device), product.to(STORE_DTYPE)
    return (basis.T.contiguous(), other) if factors.side == "in" else (other, basis)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as float32 on the CPU, for hashing; no copy when it is that already."""
    flat = tensor.detach().to("cpu", STORE_DTYPE).contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def weight_key(weight_OI: Tensor) -> str:
    """SHA-256 (hex) of the weight as float32, its shape, the algorithm and the dtype of the store.

    The same for a bf16 or fp16 weight and its float32 cast, and for every name, path and device.
    """
    digest = hashlib.sha256(f"{ALGORITHM} {STORE_DTYPE} {tuple(weight_OI.shape)} ".encode())
    digest.update(tensor_bytes(weight_OI))
    return digest.hexdigest()


def statistics(factors: Factors, seconds: float) -> LayerStatistics:
    """Rank, energy, condition and near-equal neighbours of a layer's singular values."""
    s_R = factors.s_R.double()
    top = float(s_R[0])
    known = s_R > top * max(factors.shape) * torch.finfo(torch.float32).eps
    energy_R = s_R.square()
    total = float(energy_R.sum())
    # Values that are zero to rounding have no direction of their own either: neighbours among them count.
    clean = torch.where(known, s_R, torch.zeros_like(s_R))
    near_equal = (clean[:-1] - clean[1:]) <= NEAR_EQUAL_GAP * clean[:-1]
    return LayerStatistics(
        shape=factors.shape,
        rank=int(known.sum()),
        energy_top10=float(energy_R[: math.ceil(0.1 * len(s_R))].sum()) / total if total else 0.0,
        condition=top / float(s_R[-1]) if float(s_R[-1]) > 0 else math.inf,
        near_equal=int(near_equal.sum()),
        seconds=seconds,
    )
