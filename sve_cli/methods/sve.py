"""Singular Value Ensemble: frozen singular vectors, one set of singular values (and heads) per member.

arXiv 2601.22068. Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sve_cli import linear_forms
from sve_cli.backbone import Backbone, LinearView
from sve_cli.ensemble import (
    Ensemble,
    FactorSource,
    MemberContext,
    MemberLinear,
    ParameterGroup,
    TaskView,
    keyed_generator,
    swap_linears,
)
from sve_cli.factors import Factors, in_out
from sve_cli.methods.member_norms import MemberNorm, swap_norms
from sve_cli.recipe.spec import MethodSpec, doc

NEGLIGIBLE = 1e-6  # singular values below this share of the largest are frozen: their direction is rounding noise


@dataclass(frozen=True)
class Params:
    """Choices of SVE. Defaults are the best measured here (docs/results.md)."""

    sigma_init: float = doc(
        "Relative spread of the members' start: s_m = S (1 + ε), ε ~ N(0, sigma_init²).", 0.01, low=0.0, high=1.0
    )
    parametrisation: Literal["relative", "absolute"] = doc(
        "What is optimised: the gain s/S (relative) or s itself (absolute, the paper). They want different learning rates.",
        "relative",
    )
    biases: Literal["member", "frozen"] = doc("Whether each member trains its own biases where a layer has one.", "member")
    bias_init: float = doc("Spread of the member biases at the start: b + N(0, bias_init²).", 0.01, low=0.0, high=1.0)
    member_batches: Literal["independent", "shared"] = doc(
        "Whether members see independent mini-batches or the same.", "independent"
    )
    train_norms: bool = doc("Also train each member's own normalisation weights (an extension of the paper).", False)
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "off")
    decay_toward: Literal["pretrained", "zero"] = doc(
        "Where weight decay pulls the singular values; the paper: zero.", "pretrained"
    )
    form: Literal["auto", "factored", "materialised", "residual"] = doc(
        "How training computes a layer; auto: the cheaper of factored and materialised. Evaluation always uses the definition.",
        "auto",
    )


class SVELinear(MemberLinear):
    """One target: frozen factors A (R, I), B (O, R), the members' deviations of Σ and, if asked for, biases.

    The parameter holds (value - pretrained value), so that numbers near 1 keep their precision and weight decay pulls
    toward the checkpoint.
    """

    def __init__(
        self, view: LinearView, context: MemberContext, factors: Factors, params: Params, n_members: int, seed: int
    ) -> None:
        super().__init__(view, context)
        self.params = params
        weight_OI = view.weight_OI
        a_RI, b_OR = in_out(weight_OI, factors)
        for name, tensor in (("a_RI", a_RI), ("b_OR", b_OR), ("weight_OI", weight_OI), ("s_R", factors.s_R.float())):
            self.register_buffer(name, tensor, persistent=False)
        self.relative = params.parametrisation == "relative"
        self.register_buffer("live_R", self.s_R > NEGLIGIBLE * self.s_R.max(), persistent=False)
        noise_MR = torch.stack(
            [torch.randn(len(self.s_R), generator=keyed_generator(seed, "sigma", m, view.name)) for m in range(n_members)]
        )
        start_MR = params.sigma_init * noise_MR * (1.0 if self.relative else self.s_R)
        self.delta_MR = nn.Parameter(torch.where(self.live_R, start_MR, torch.zeros(())))
        self._cast: tuple[Tensor, Tensor] | None = None
        self.bias_MO: nn.Parameter | None = None
        bias_O = view.bias
        if bias_O is not None and params.biases == "member":
            draws = [torch.randn(len(bias_O), generator=keyed_generator(seed, "bias", m, view.name)) for m in range(n_members)]
            self.bias_MO = nn.Parameter(bias_O.detach().float() + params.bias_init * torch.stack(draws))

    s_R: Tensor
    live_R: Tensor
    a_RI: Tensor
    b_OR: Tensor

    def gain_MR(self, members: tuple[int, ...]) -> Tensor:
        """max(s_m, 0) / S of these members; exactly 1 where S is negligible."""
        delta_MR = self.delta_MR if len(members) == len(self.delta_MR) else self.delta_MR[list(members)]
        deviation_MR = delta_MR if self.relative else delta_MR / torch.where(self.live_R, self.s_R, torch.ones(()))
        return torch.where(self.live_R, torch.relu(1 + deviation_MR), torch.ones(()))

    def _training_factors(self) -> tuple[Tensor, Tensor]:
        """The frozen factors in the precision products run in, cast once and not at every step."""
        if not torch.is_autocast_enabled(self.a_RI.device.type):
            return self.a_RI, self.b_OR
        if self._cast is None:
            dtype = torch.get_autocast_dtype(self.a_RI.device.type)
            self._cast = (self.a_RI.to(dtype), self.b_OR.to(dtype))
        return self._cast

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        members = self.context.members
        gain_MR = self.gain_MR(members)
        a_RI, b_OR = self._training_factors()
        bias_MO = self._bias(members)
        form = self.params.form
        if form == "auto":
            form = linear_forms.cheapest(x_MNI.shape[1], self.b_OR.shape[0], self.a_RI.shape[1])
        if form == "factored":
            return linear_forms.factored(x_MNI, a_RI, b_OR, gain_MR, bias_MO)
        if form == "residual":
            y_MNO = linear_forms.residual(x_MNI, self.weight_OI, a_RI, b_OR, gain_MR)
        else:
            y_MNO = linear_forms.materialised(x_MNI, a_RI, b_OR, gain_MR)
        return y_MNO if bias_MO is None else y_MNO + bias_MO.unsqueeze(1).to(y_MNO.dtype)

    def _bias(self, members: tuple[int, ...]) -> Tensor | None:
        if self.bias_MO is None:
            return None if self.view.bias is None else self.view.bias.unsqueeze(0)
        return self.bias_MO if len(members) == len(self.bias_MO) else self.bias_MO[list(members)]

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weight_OI = linear_forms.merged_weight(self.weight_OI, self.a_RI, self.b_OR, self.gain_MR((member,))[0])
            return weight_OI, self.view.bias if self.bias_MO is None else self.bias_MO[member].detach()

    def averaged(self) -> tuple[Tensor, Tensor | None]:
        """Matrix and bias at the mean of the members' singular values and biases."""
        with torch.no_grad():
            gain_R = self.gain_MR(tuple(range(len(self.delta_MR)))).mean(0)
            weight_OI = linear_forms.merged_weight(self.weight_OI, self.a_RI, self.b_OR, gain_R)
            return weight_OI, self.view.bias if self.bias_MO is None else self.bias_MO.detach().mean(0)


class SVEEnsemble(Ensemble):
    """An ensemble of singular values."""

    def averaged_model(self) -> nn.Module:
        network = self.backbone.fresh()

        def averaged(linear: MemberLinear) -> tuple[Tensor, Tensor | None]:
            assert isinstance(linear, SVELinear)
            return linear.averaged()

        self._write_plain(network, averaged)
        for norm in (m for m in self.network.modules() if isinstance(m, MemberNorm)):
            norm.write_plain(network.get_submodule(norm.name), None)
        return self.backbone.with_head(network, self.averaged_head())

    def member_network(self, member: int) -> nn.Module:
        network = super().member_network(member)
        for norm in (m for m in self.network.modules() if isinstance(m, MemberNorm)):
            norm.write_plain(network.get_submodule(norm.name), member)
        return network


class SVE:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """Relative steps want a learning rate an order of magnitude above the paper's 1e-3 on s."""
        return 1e-2 if params.parametrisation == "relative" else 1e-3

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """Swap every target for its members' version; see `Method.build`."""
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        swapped = swap_linears(
            network, views, lambda v: SVELinear(v, context, factors.get(v.weight_OI, v.name), params, spec.members, seed)
        )
        norms = swap_norms(network, context, spec.members) if params.train_norms else {}
        heads = task.make_heads(spec.members, seed)
        ensemble = SVEEnsemble(
            backbone,
            network,
            heads,
            task.classes,
            context,
            member_batches=params.member_batches,
            dropout=params.dropout == "checkpoint",
        )
        linears = {n: m for n, m in swapped.items() if isinstance(m, SVELinear)}
        sigma = {f"{n}.delta_MR": m.delta_MR for n, m in linears.items()}
        ensemble.groups.append(ParameterGroup("sigma", sigma))
        biases = {f"{n}.bias_MO": m.bias_MO for n, m in linears.items() if m.bias_MO is not None}
        if biases:
            ensemble.groups.append(ParameterGroup("bias", biases))
            # The bias parameters are absolute: decay pulls them toward the checkpoint's.
            ensemble.decay_origins |= {
                f"{n}.bias_MO": b for n, m in linears.items() if m.bias_MO is not None and (b := m.view.bias) is not None
            }
        if norms:
            trained = {f"{n}.{k}": p for n, m in norms.items() for k, p in m.named_parameters()}
            ensemble.groups.append(ParameterGroup("norm", trained))
            ensemble.decay_origins |= {n: p.detach()[0].clone() for n, p in trained.items()}
        if params.decay_toward == "zero":
            origin = {n: -(torch.ones(()) if m.relative else m.s_R) for n, m in linears.items()}
            ensemble.decay_origins |= {f"{n}.delta_MR": o for n, o in origin.items()}
        ensemble.facts = {"targets": len(views), "singular_values_per_member": sum(len(m.s_R) for m in linears.values())}
        return ensemble
