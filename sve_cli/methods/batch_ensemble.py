"""BatchEnsemble: two vectors per member scale the inputs and outputs of every frozen matrix.

Wen et al., arXiv 2002.06715: y = ((x ∘ r_m) Wᵀ) ∘ s_m + b_m, so that W_m = W ∘ (s_m r_mᵀ). There W trains with the vectors; here
it is the checkpoint's and stays frozen, because one matrix that several members train would make a member's steps depend on
the others'. Shapes: M members, N rows, O out, I in, K input channels (K = I but for convolutions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sve_cli.backbone import Backbone, LinearView
from sve_cli.ensemble import (
    Ensemble,
    FactorSource,
    MemberContext,
    ParameterGroup,
    TaskView,
    keyed_generator,
    swap_linears,
)
from sve_cli.methods.matrix import BIASES, Biases, MatrixEnsemble, MatrixLinear, pick
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of BatchEnsemble."""

    init: Literal["gaussian", "signs"] = doc(
        "Start of both vectors. gaussian: near 1, which keeps what the checkpoint knows; signs: the paper's ±1, which does not.",
        "gaussian",
    )
    # On MiniLM, features then have a cosine of 0.98 with the checkpoint's; at 0.2 it is 0.91, at 0.5 and with signs about 0.
    init_std: float = doc("Spread of the gaussian start: 1 + N(0, init_std²).", 0.1, low=0.0, high=1.0)
    biases: Biases = doc(BIASES, "member")
    bias_init: float = doc("Spread of the member biases at the start: b + N(0, bias_init²).", 0.0, low=0.0, high=1.0)
    member_batches: Literal["independent", "shared"] = doc(
        "Whether members see independent mini-batches or the same.", "independent"
    )
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")


class BatchLinear(MatrixLinear):
    """One target: W frozen, the members' r (inputs) and s (outputs). Of a convolution, r scales whole input channels."""

    def __init__(self, view: LinearView, context: MemberContext, params: Params, n_members: int, seed: int) -> None:
        super().__init__(view, context, n_members, seed, params.biases, params.bias_init)
        out, inner = self.weight_OI.shape
        channels = view.module.in_channels if isinstance(view.module, nn.Conv2d) else inner
        self.taps = inner // channels

        def start(purpose: str, size: int) -> Tensor:
            noise = [torch.randn(size, generator=keyed_generator(seed, purpose, m, view.name)) for m in range(n_members)]
            draws = torch.stack(noise)
            return 1 + params.init_std * draws if params.init == "gaussian" else torch.where(draws < 0, -1.0, 1.0)

        self.r_MK = nn.Parameter(start("batch_r", channels))
        self.s_MO = nn.Parameter(start("batch_s", out))

    def _r_MI(self, members: tuple[int, ...]) -> Tensor:
        r_MK = pick(self.r_MK, members)
        return r_MK if self.taps == 1 else r_MK.repeat_interleave(self.taps, dim=1)

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        members = self.context.members
        weight_OI = self.frozen("weight_OI")
        dtype = weight_OI.dtype  # the vectors stay float32 until multiplied: near 1, bfloat16 would round their changes away
        y_MNO = F.linear((x_MNI * self._r_MI(members).unsqueeze(1)).to(dtype), weight_OI)
        y_MNO = y_MNO * pick(self.s_MO, members).unsqueeze(1)
        bias_MO = self.member_bias(members)
        return (y_MNO if bias_MO is None else y_MNO + bias_MO.unsqueeze(1)).to(dtype)

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weight_OI = self.s_MO[member].float().unsqueeze(1) * self.weight_OI * self._r_MI((member,)).float()
            return weight_OI, self.plain_bias(member)


class BatchEnsemble:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """The vectors are factors near 1, like SVE's relative gains, so that Adam's steps are relative: the same 1e-2."""
        return 1e-2

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`."""
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        swapped = swap_linears(network, views, lambda v: BatchLinear(v, context, params, spec.members, seed))
        ensemble = MatrixEnsemble(
            backbone,
            network,
            task.make_heads(spec.members, seed),
            task.classes,
            context,
            member_batches=params.member_batches,
            dropout=params.dropout == "checkpoint",
        )
        linears = {n: m for n, m in swapped.items() if isinstance(m, BatchLinear)}
        vectors = {f"{n}.{k}": p for n, m in linears.items() for k, p in (("r_MK", m.r_MK), ("s_MO", m.s_MO))}
        ensemble.groups.append(ParameterGroup("scale", vectors))
        signs = params.init == "signs"  # decay pulls toward the checkpoint, or toward the signs drawn at the start
        ensemble.decay_origins |= {n: p.detach().clone() if signs else torch.ones(()) for n, p in vectors.items()}
        ensemble.add_biases()
        ensemble.facts = {"targets": len(views), "factors_per_member": sum(p.shape[1] for p in vectors.values())}
        return ensemble
