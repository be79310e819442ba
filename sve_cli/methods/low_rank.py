"""A member's low-rank update of a frozen matrix: scale · B_m A_m.

Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sve_cli.ensemble import Ensemble, ParameterGroup, keyed_generator
from sve_cli.errors import SveError
from sve_cli.methods.matrix import pick

Start = Literal["xavier", "peft"]
XAVIER_GAIN = 10.0


@dataclass(frozen=True)
class LowRankSettings:
    """Rank R, how A starts, and the factor of the product."""

    rank: int
    start: Start
    scale: float

    @classmethod
    def checked(
        cls, rank: int, start: Start, alpha: float | None, start_key: str = "init", alpha_key: str = "alpha"
    ) -> LowRankSettings:
        """The scale is 1 in LoRA-Ensemble's convention and alpha / rank in peft's, whose alpha is 2 · rank where none is given.

        Raises:
            SveError: alpha is given where it has no effect.
        """
        if start == "xavier":
            if alpha is not None:
                raise SveError(
                    f"method.params.{alpha_key} is set, but LoRA-Ensemble's own start has no alpha.",
                    f"Write {start_key}: peft, or remove {alpha_key}.",
                )
            return cls(rank, start, 1.0)
        return cls(rank, start, 2.0 if alpha is None else alpha / rank)

    def facts(self) -> dict[str, Any]:
        """What the report says of the update."""
        return {"lora_rank": self.rank, "lora_scale": self.scale}


class LowRank(nn.Module):
    """A_MRI and B_MOR of the members of one layer. B starts at zero, so that every member starts where it would without.

    A is uniform. Start "xavier": within 10 · sqrt(6 / (I + R)), as LoRA-Ensemble (arXiv 2405.14438); "peft": within
    1 / sqrt(I), which is Kaiming's with a = sqrt(5), as the peft library.

    Args:
        shape: (O, I).
        settings: rank, start and scale.
        n_members: M.
        seed: each draw is keyed by (seed, "lora", member, name).
        name: the layer's.
    """

    def __init__(self, shape: tuple[int, ...], settings: LowRankSettings, n_members: int, seed: int, name: str) -> None:
        super().__init__()
        (out, inner), rank = shape, settings.rank
        self.scale = settings.scale
        bound = XAVIER_GAIN * math.sqrt(6 / (inner + rank)) if settings.start == "xavier" else 1 / math.sqrt(inner)
        draws = [
            torch.empty(rank, inner).uniform_(-bound, bound, generator=keyed_generator(seed, "lora", m, name))
            for m in range(n_members)
        ]
        self.A_MRI = nn.Parameter(torch.stack(draws))
        self.B_MOR = nn.Parameter(torch.zeros(n_members, out, rank))

    def add(self, y_MNO: Tensor, x_MNI: Tensor, members: tuple[int, ...]) -> Tensor:
        """y + scale · (x Aᵀ) Bᵀ of these members, in the precision of y."""
        a_MRI, b_MOR = (pick(p, members).to(y_MNO.dtype) for p in (self.A_MRI, self.B_MOR))
        h_MNR = torch.bmm(x_MNI.to(y_MNO.dtype), a_MRI.transpose(1, 2))
        return torch.baddbmm(y_MNO, h_MNR, b_MOR.transpose(1, 2), alpha=self.scale)

    def delta_OI(self, member: int) -> Tensor:
        """scale · B A of one member, float32, detached."""
        return self.scale * (self.B_MOR[member].detach().float() @ self.A_MRI[member].detach().float())

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor]:
        """(left_OR, right_RI, size_R) of one member: the singular vectors of scale · B A, from its two thin factors, float64.

        There are min(O, I) where that is below R.
        """
        b_OR, a_RI = self.scale * self.B_MOR[member].detach().double(), self.A_MRI[member].detach().double()
        (left_OR, core_b), (right_IR, core_a) = torch.linalg.qr(b_OR), torch.linalg.qr(a_RI.T)
        u, size_R, vt = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
        return ((left_OR @ u) * size_R).float(), (vt @ right_IR.T).float(), size_R


def add_lora_group(ensemble: Ensemble, lr_scale: float = 1.0) -> None:
    """Declare the low-rank updates of all layers as trained, at `lr_scale` times the method's learning rate."""
    parameters = {
        f"{linear.view.name}.{k}": p
        for linear in ensemble.member_linears()
        if isinstance(lora := getattr(linear, "lora", None), LowRank)
        for k, p in lora.named_parameters()
    }
    if parameters:
        ensemble.groups.append(ParameterGroup("lora", parameters, lr_scale=lr_scale))
