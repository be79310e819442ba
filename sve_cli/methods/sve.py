"""Singular Value Ensemble: frozen singular vectors, one set of singular values (and heads) per member.

arXiv 2601.22068. Shapes: M members, N rows, O out, I in, R rank (of the factors, or of what trains).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sve_cli import linear_forms
from sve_cli.backbone import Backbone, LinearView, block_of
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
from sve_cli.errors import SveError
from sve_cli.factors import Factors, in_out
from sve_cli.methods.matrix import BIASES, Biases, MatrixEnsemble, MatrixLinear, pick
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
    biases: Biases = doc(BIASES, "member")
    bias_init: float = doc("Spread of the member biases at the start: b + N(0, bias_init²).", 0.01, low=0.0, high=1.0)
    member_batches: Literal["independent", "shared"] = doc(
        "Whether members see independent mini-batches or the same.", "independent"
    )
    train_norms: bool = doc(
        "Also train each member's own normalisation weights (an extension of the paper).",
        False,
    )
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")
    decay_toward: Literal["pretrained", "zero"] = doc(
        "Where weight decay pulls the singular values; the paper: zero.", "pretrained"
    )
    form: Literal["auto", "factored", "materialised", "residual"] = doc(
        "How training computes a layer; auto: the cheapest. Evaluation always uses the definition.", "auto"
    )
    sigma_grad_tokens: float = doc(
        "Share of the tokens (or patches) that Σ's gradient is taken from, drawn anew for each layer and step; its mean is that of "
        "all. Rounded to 1, 1/2, 1/3 …; layers where it saves nothing use all.", 1.0, above=0.0, high=1.0,
    )  # fmt: skip
    rank: int | None = doc("Train the k largest singular values of a layer only; null: all.", None, low=1)
    rank_start: int | None = doc("Start with this many and widen to `rank`, largest first; null: all of them at once.", None, low=1)
    widen_over: float = doc(
        "Share of training over which the trained rank grows from rank_start to rank.", 0.5, above=0.0, high=1.0
    )


class SVELinear(MatrixLinear):
    """One target: frozen factors A (R, I), B (O, R), the members' deviations of Σ and, if asked for, biases.

    The parameter holds (value - pretrained value), so that numbers near 1 keep their precision and weight decay pulls
    toward the checkpoint. With `rank` it has a column for each of the K largest singular values; the others' gain is 1, and
    their factors are kept only where the factored form, which needs them, is the cheapest.

    Attributes:
        width: how many columns train now (`rank_start` and `widen_over`); those beyond are still 0 and not computed.
    """

    uses_factors = True
    s_R: Tensor
    live_R: Tensor
    a_RI: Tensor
    b_OR: Tensor

    def __init__(
        self, view: LinearView, context: MemberContext, factors: Factors, params: Params, n_members: int, seed: int
    ) -> None:
        super().__init__(view, context, n_members, seed, params.biases, params.bias_init)
        self.params = params
        out, inner = self.weight_OI.shape
        self.full = len(factors.s_R)
        self.rank = min(params.rank or self.full, self.full)
        self.start = min(params.rank_start or self.rank, self.rank)
        self.width = self.rank
        whole = params.form == "factored" or (
            params.form == "auto" and linear_forms.cheapest(1, out, inner, self.rank) == "factored"
        )
        kept = self.full if whole else self.rank
        a_RI, b_OR = in_out(self.weight_OI, factors)  # descending singular values: the largest directions come first
        s_R = factors.s_R.float()[: self.rank].clone()
        for name, tensor in (("a_RI", a_RI[:kept]), ("b_OR", b_OR[:, :kept]), ("s_R", s_R)):
            self.register_buffer(name, tensor.clone() if kept < self.full else tensor, persistent=False)
        self.relative = params.parametrisation == "relative"
        self.register_buffer("live_R", self.s_R > NEGLIGIBLE * self.s_R.max(), persistent=False)
        noise_MR = torch.stack(
            [torch.randn(self.full, generator=keyed_generator(seed, "sigma", m, view.name)) for m in range(n_members)]
        )[:, : self.rank]
        start_MR = params.sigma_init * noise_MR * (1.0 if self.relative else self.s_R)
        starts_R = self.live_R & (torch.arange(self.rank) < self.start)
        self.delta_MR = nn.Parameter(torch.where(starts_R, start_MR, torch.zeros(())))

    def widen(self, share: float) -> None:
        """Set `width` for a share of the training steps done."""
        grown = min(1.0, share / self.params.widen_over)
        self.width = self.start + int((self.rank - self.start) * grown)

    def zero_origin_R(self) -> Tensor:
        """The deviation at which the columns that train are a singular value of 0; 0 for the others, which must not move."""
        unit_R = torch.ones_like(self.s_R) if self.relative else self.s_R
        return torch.where(torch.arange(self.rank, device=unit_R.device) < self.width, -unit_R, torch.zeros_like(unit_R))

    def gain_MR(self, members: tuple[int, ...]) -> Tensor:
        """max(s_m, 0) / S of these members; exactly 1 where S is negligible."""
        delta_MR = pick(self.delta_MR, members)
        deviation_MR = delta_MR if self.relative else delta_MR / torch.where(self.live_R, self.s_R, torch.ones(()))
        return torch.where(self.live_R, torch.relu(1 + deviation_MR), torch.ones(()))

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        members, width, whole = self.context.members, self.width, self.width == self.full
        gain_MR = self.gain_MR(members)[:, :width]
        a_RI, b_OR = self.frozen("a_RI"), self.frozen("b_OR")
        bias_MO = self.member_bias(members)
        form = self.params.form
        if form == "auto":
            form = linear_forms.cheapest(x_MNI.shape[1], *self.weight_OI.shape, width, self.params.sigma_grad_tokens)
        if form == "factored":
            return linear_forms.factored(x_MNI, a_RI, b_OR, F.pad(gain_MR, (0, self.full - width), value=1.0), bias_MO)
        a_RI, b_OR = a_RI[:width], b_OR[:, :width]
        if form == "residual":
            return linear_forms.residual(x_MNI, self.frozen("weight_OI"), a_RI, b_OR, gain_MR, bias_MO)
        weight_OI = None if whole else self.frozen("weight_OI")
        rows_MK, weight_K = self._rows_of_gradient(x_MNI)
        return linear_forms.materialised(x_MNI, a_RI, b_OR, gain_MR, weight_OI, bias_MO, rows_MK, weight_K)

    def _rows_of_gradient(self, x_MNI: Tensor) -> tuple[Tensor | None, float]:
        """The rows (M, K) that Σ's gradient is taken from in a training step, and what each counts; None: all."""
        share, draw, n = self.params.sigma_grad_tokens, self.context.draw, x_MNI.shape[1]
        if round(1 / share) == 1 or draw is None:
            return None, 1.0
        name = self.view.name
        keyed = [keyed_generator(draw[0], "tokens", m, name, *draw[1:]) for m in self.context.members]
        rows_MK = torch.stack([linear_forms.drawn_rows(n, share, g) for g in keyed]).to(x_MNI.device)
        return rows_MK, n / rows_MK.shape[1]

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            a_RI, b_OR, gain_R = self.a_RI[: self.rank], self.b_OR[:, : self.rank], self.gain_MR((member,))[0]
            return linear_forms.merged_weight(self.weight_OI, a_RI, b_OR, gain_R), self.plain_bias(member)

    def change(self, member: int, z_I: Tensor) -> Tensor:
        with torch.no_grad():
            a_RI, b_OR = self.a_RI[: self.rank].double(), self.b_OR[:, : self.rank].double()
            return b_OR @ ((self.gain_MR((member,))[0].double() - 1) * (a_RI @ z_I.double()))

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        with torch.no_grad():
            change_R = self.gain_MR((member,))[0] - 1
            left_OR, right_RI = self.b_OR[:, : self.rank] * change_R, self.a_RI[: self.rank]
            return left_OR, right_RI, (change_R * self.s_R).abs()


class SVEEnsemble(MatrixEnsemble):
    """An ensemble of singular values; some of its layers may have low-rank updates beside or instead of them."""

    params: Params

    def add_groups(self, params: Params, norms: dict[str, MemberNorm]) -> None:
        """Declare what trains besides the heads: Σ, biases, norms."""
        self.params = params
        linears = self._sigma_linears()
        if linears:
            self.groups.append(ParameterGroup("sigma", {f"{n}.delta_MR": m.delta_MR for n, m in linears.items()}))
        self.add_biases()
        if norms:
            trained = {f"{n}.{k}": p for n, m in norms.items() for k, p in m.named_parameters()}
            self.groups.append(ParameterGroup("norm", trained))
            self.decay_origins |= {n: p.detach()[0].clone() for n, p in trained.items()}
        self._set_origins()
        self.facts["singular_values_per_member"] = sum(m.rank for m in linears.values())
        sides = [min(m.view.weight_OI.shape) for m in linears.values()]
        self.facts["factor_bytes"] = sum(4 * side * (side + 1) for side in sides)  # a square basis and s, float32

    def on_progress(self, share: float) -> None:
        if self.params.rank_start is not None:
            for linear in self._sigma_linears().values():
                linear.widen(share)
            self._set_origins()

    def _set_origins(self) -> None:
        if self.params.decay_toward == "zero":
            self.decay_origins |= {f"{n}.delta_MR": m.zero_origin_R() for n, m in self._sigma_linears().items()}

    def _sigma_linears(self) -> dict[str, SVELinear]:
        return {linear.view.name: linear for linear in self.member_linears() if isinstance(linear, SVELinear)}


def check_ranks(params: Params) -> None:
    """Refuse a schedule that would narrow.

    Raises:
        SveError: rank_start is above rank.
    """
    if params.rank is not None and params.rank_start is not None and params.rank_start > params.rank:
        raise SveError(f"method.params.rank_start is {params.rank_start}, above rank ({params.rank}).", "Start at or below `rank`.")


class SVE:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """Relative steps want a learning rate an order of magnitude above the paper's 1e-3 on s."""
        return 1e-2 if params.parametrisation == "relative" else 1e-3

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """Swap every target for its members' version; see `Method.build`.

        Raises:
            SveError: rank_start is above rank.
        """
        check_ranks(params)
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        swap_linears(network, views, lambda v: SVELinear(v, context, factors.get(v.weight_OI, v.name), params, spec.members, seed))
        return finish(backbone, task, spec, network, context, params, seed, {"targets": len(views)})


def finish(
    backbone: Backbone,
    task: TaskView,
    spec: MethodSpec,
    network: nn.Module,
    context: MemberContext,
    params: Params,
    seed: int,
    facts: dict[str, Any],
) -> SVEEnsemble:
    """The ensemble around a network whose targets are swapped already.

    With `last_blocks`, norms train only in the blocks that hold a target: the others are to stay as the checkpoint has them.
    """
    n_members = len(context.members)
    held = {block_of(n) or "" for n, m in network.named_modules() if isinstance(m, MemberLinear)}
    blocks = None if spec.last_blocks is None else held
    norms = swap_norms(network, context, n_members, blocks) if params.train_norms else {}
    heads = task.make_heads(n_members, seed)
    ensemble = SVEEnsemble(
        backbone,
        network,
        heads,
        task.classes,
        context,
        member_batches=params.member_batches,
        dropout=params.dropout == "checkpoint",
    )
    ensemble.facts = facts
    ensemble.add_groups(params, norms)
    return ensemble
