"""LoRA-Ensemble: one low-rank update of the frozen attention matrices (and one head) per member.

Mühlematter et al., arXiv 2405.14438: y = W x + b + B_m A_m x on the query, key, value and output matrices of attention, without
a factor alpha / rank. Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sve_cli.backbone import Backbone, LinearView
from sve_cli.ensemble import Ensemble, FactorSource, MemberContext, TaskView, swap_linears
from sve_cli.methods.low_rank import LowRank, LowRankSettings, add_lora_group
from sve_cli.methods.matrix import BIASES, Biases, MatrixEnsemble, MatrixLinear, attention_or_all
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of LoRA-Ensemble. `method.targets: auto` means its attention matrices here, as in the paper."""

    rank: int = doc("Rank of the update. The paper: 8 for CIFAR, 4 for HAM10000, 16 for ESC-50.", 8, low=1)
    init: Literal["xavier", "peft"] = doc(
        "Start of A, with B zero. xavier: the paper's uniform with gain 10 and no scale; peft: Kaiming-uniform, scale alpha/rank.",
        "xavier",
    )
    alpha: float | None = doc("Numerator of peft's scale alpha/rank (init: peft only); null: twice the rank.", None, above=0.0)
    member_batches: Literal["independent", "shared"] = doc(
        "Whether members see independent mini-batches or the same (the paper: the same).", "independent"
    )
    biases: Biases = doc(BIASES, "frozen")
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")


class LoraLinear(MatrixLinear):
    """One target: W and b frozen, the members' low-rank updates on top."""

    def __init__(
        self,
        view: LinearView,
        context: MemberContext,
        settings: LowRankSettings,
        n_members: int,
        seed: int,
        biases: Biases = "frozen",
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(view, context, n_members, seed, biases, bias_init)
        self.lora = LowRank(self.weight_OI.shape, settings, n_members, seed, view.name)

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        weight_OI = self.frozen("weight_OI")
        members, x_MNI = self.context.members, x_MNI.to(weight_OI.dtype)
        bias_MO = self.member_bias(members)
        if bias_MO is None or len(bias_MO) < len(members):  # none, or one for all
            shared_O = None if bias_MO is None else bias_MO[0].to(weight_OI.dtype)
            return self.lora.add(F.linear(x_MNI, weight_OI, shared_O), x_MNI, members)
        return self.lora.add(F.linear(x_MNI, weight_OI), x_MNI, members) + bias_MO.unsqueeze(1).to(weight_OI.dtype)

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return self.weight_OI + self.lora.delta_OI(member), self.plain_bias(member)

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.lora.directions(member)


class LoraEnsemble:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """1e-3 as in SVE's comparison (arXiv 2601.22068); LoRA-Ensemble's own experiments used 1e-4 (arXiv 2405.14438)."""
        return 1e-3

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: alpha is given where it has no effect.
        """
        settings = LowRankSettings.checked(params.rank, params.init, params.alpha)
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        views = attention_or_all(backbone, spec, network)
        swap_linears(network, views, lambda v: LoraLinear(v, context, settings, spec.members, seed, params.biases))
        ensemble = MatrixEnsemble(
            backbone,
            network,
            task.make_heads(spec.members, seed),
            task.classes,
            context,
            member_batches=params.member_batches,
            dropout=params.dropout == "checkpoint",
        )
        ensemble.facts = {"targets": len(views), **settings.facts()}
        add_lora_group(ensemble)
        ensemble.add_biases()
        return ensemble
