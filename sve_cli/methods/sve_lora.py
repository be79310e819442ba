"""The hybrid: singular values and a low-rank update per member, both or either on every target.

SVE (arXiv 2601.22068) names it as an open question; the update is LoRA-Ensemble's (arXiv 2405.14438). Member m of a target is
W_m = U diag(max(s_m, 0)) Vt + scale · B_m A_m. Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, LinearView
from sve_cli.ensemble import Ensemble, FactorSource, MemberContext, MemberLinear, TaskView, swap_linears
from sve_cli.errors import SveError
from sve_cli.factors import Factors
from sve_cli.methods import sve
from sve_cli.methods.lora_ensemble import LoraLinear
from sve_cli.methods.low_rank import LowRank, LowRankSettings, add_lora_group
from sve_cli.methods.matrix import MatrixLinear
from sve_cli.recipe.spec import MethodSpec, doc

_CHOICE = "auto (those of method.targets), none, or whatever method.targets may say"


@dataclass(frozen=True)
class Params(sve.Params):
    """Choices of the hybrid: those of sve, and the update's."""

    sigma_targets: str | list[str] = doc(f"Layers whose singular values train: {_CHOICE}.", "auto")
    lora_targets: str | list[str] = doc(f"Layers with a low-rank update: {_CHOICE}.", "auto")
    lora_rank: int = doc("Rank of the update.", 8, low=1)
    lora_start: Literal["xavier", "peft"] = doc("How the update starts; `init` of lora_ensemble.", "xavier")
    lora_alpha: float | None = doc("`alpha` of lora_ensemble (lora_start: peft only).", None, above=0.0)
    lora_lr_scale: float = doc("Learning rate of the update, as a share of train.lr, which is that of Σ.", 0.1, above=0.0)


class HybridLinear(sve.SVELinear):
    """One target with both: Σ's product, and the low-rank update on top."""

    def __init__(
        self,
        view: LinearView,
        context: MemberContext,
        factors: Factors,
        params: Params,
        lora: LowRankSettings,
        n_members: int,
        seed: int,
    ) -> None:
        super().__init__(view, context, factors, params, n_members, seed)
        self.lora = LowRank(self.weight_OI.shape, lora, n_members, seed, view.name)

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        return self.lora.add(super().forward_MNI(x_MNI), x_MNI, self.context.members)

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        weight_OI, bias = super().merged(member)
        with torch.no_grad():
            return weight_OI + self.lora.delta_OI(member), bias

    def change(self, member: int, z_I: Tensor) -> Tensor:
        return super().change(member, z_I) + self.lora.delta_OI(member).double() @ z_I.double()

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        return MatrixLinear.directions(self, member)  # the update's directions are not those of Σ


class SveLora:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """That of sve; the update's is `lora_lr_scale` times it: 1e-3 as in lora_ensemble, 1e-4 where Σ is absolute."""
        return sve.SVE.default_lr(params)

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: no layer trains, rank_start is above rank, or alpha is given where it has no effect.
        """
        sve.check_ranks(params)
        lora = LowRankSettings.checked(params.lora_rank, params.lora_start, params.lora_alpha, "lora_start", "lora_alpha")
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        sigma_views = _views(backbone, spec, network, "sigma_targets", params.sigma_targets)
        lora_views = _views(backbone, spec, network, "lora_targets", params.lora_targets)
        if not sigma_views and not lora_views:
            raise SveError("sigma_targets and lora_targets are both none, so that no layer would train.", "Use heads_only.")

        def make(view: LinearView) -> MemberLinear:
            if view.name not in sigma_views:
                return LoraLinear(view, context, lora, spec.members, seed, params.biases, params.bias_init)
            found = factors.get(view.weight_OI, view.name)
            if view.name not in lora_views:
                return sve.SVELinear(view, context, found, params, spec.members, seed)
            return HybridLinear(view, context, found, params, lora, spec.members, seed)

        views = {**sigma_views, **lora_views}
        swap_linears(network, [views[n] for n, _ in network.named_modules() if n in views], make)
        facts = {"targets": len(views), "sigma_targets": len(sigma_views), "lora_targets": len(lora_views), **lora.facts()}
        ensemble = sve.finish(backbone, task, spec, network, context, params, seed, facts)
        add_lora_group(ensemble, params.lora_lr_scale)
        return ensemble


def _views(backbone: Backbone, spec: MethodSpec, network: nn.Module, key: str, targets: str | list[str]) -> dict[str, LinearView]:
    if targets == "none":
        return {}
    chosen, own = (spec, "method.targets") if targets == "auto" else (replace(spec, targets=targets), f"method.params.{key}")
    try:
        return {view.name: view for view in backbone.targets(chosen, network)}
    except SveError as error:  # it says method.targets
        raise type(error)(error.message.replace("method.targets", own), error.hint.replace("method.targets", own)) from error
