"""Singular values with a few entries beside the diagonal: some that all members share, some at places of each member's own.

Member m of a target is W_m = U (diag(max(s_m, 0)) + C + C_m) Vt. C has the first S cyclic off-diagonals, the same for every
member; C_m has K more. Entry (r, (r + o) mod R) is c · sqrt(s_r s_(r + o)), with o = 1 … S in C and
o = S + 1 + (m K + k) mod (R - 1 - S), k = 0 … K - 1, in C_m: no two members train the same entries of their own while S + M K < R.
Frozen singular vectors with a banded matrix between them are SVFT's (arXiv 2405.19597); what is shared lets one member do more at a
price that M does not multiply, a band for each member lets them differ. Both are this project's.
Shapes: M members, N rows, O out, I in, R rank, S shared bands, K bands of a member's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sve_cli import linear_forms
from sve_cli.backbone import Backbone, LinearView
from sve_cli.ensemble import Ensemble, FactorSource, MemberContext, ParameterGroup, TaskView, swap_linears
from sve_cli.errors import SveError
from sve_cli.factors import Factors
from sve_cli.methods import sve
from sve_cli.methods.matrix import BIASES, Biases, MatrixLinear, pick
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params(sve.Params):
    """Choices of the banded form: those of sve, except that every direction trains and no layer is computed as a residual."""

    biases: Biases = doc(BIASES, "shared")
    bands: int = doc("Off-diagonals a member trains in every target for itself, K.", 2, low=0)
    shared_bands: int = doc("Off-diagonals of every target that all members train together.", 2, low=0)
    band_lr_scale: float = doc(
        "Learning rate of the off-diagonals, as a share of train.lr, which is that of Σ. They count in relative units always.",
        1.0,
        above=0.0,
    )


def off_diagonals(n_members: int, shared: int, bands: int, rank: int) -> list[list[int]]:
    """Which cyclic off-diagonals every member trains: the shared ones, then its own."""
    return [
        [*range(1, shared + 1), *(1 + shared + (m * bands + k) % (rank - 1 - shared) for k in range(bands))]
        for m in range(n_members)
    ]


class BandedLinear(sve.SVELinear):
    """One target: Σ's deviations as in sve, c_MKR and the shared c_SR, zero at the start, so that a member starts as in sve.

    Attributes:
        unit_MKR: for the shared off-diagonals and then the member's own (here K is both), what an off-diagonal's 1 is in the
            factors: sqrt(s_r s_(r + o)), over what A and B carry of it; 0 where either direction is negligible.
    """

    params: Params
    unit_MKR: Tensor

    def __init__(
        self, view: LinearView, context: MemberContext, factors: Factors, params: Params, n_members: int, seed: int
    ) -> None:
        super().__init__(view, context, factors, params, n_members, seed)
        shared, bands = params.shared_bands, params.bands
        self.offsets = off_diagonals(n_members, shared, bands, self.rank)
        self.register_buffer("unit_MKR", torch.stack([self._units_KR(own) for own in self.offsets]), persistent=False)
        self.c_MKR = nn.Parameter(torch.zeros(n_members, bands, self.rank), requires_grad=bands > 0)
        self.c_SR = nn.Parameter(torch.zeros(shared, self.rank), requires_grad=shared > 0)

    def _units_KR(self, offsets: Sequence[int]) -> Tensor:
        s_R, left_R, right_R = self.s_R.double(), self.b_OR.double().norm(dim=0), self.a_RI.double().norm(dim=1)
        units = []
        for offset in offsets:
            live_R = self.live_R & self.live_R.roll(-offset)
            carried_R = torch.where(live_R, left_R * right_R.roll(-offset), 1.0)
            units.append(torch.where(live_R, (s_R * s_R.roll(-offset)).sqrt() / carried_R, 0.0))
        return torch.stack(units).float()

    def bands_MKR(self, members: tuple[int, ...]) -> Tensor:
        """The off-diagonals of these members, as factors of A's rows and B's columns."""
        shared_MSR = self.c_SR.expand(len(members), -1, -1)
        return torch.cat([shared_MSR, pick(self.c_MKR, members)], 1) * pick(self.unit_MKR, members)

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        members = self.context.members
        a_RI, b_OR = self.frozen("a_RI"), self.frozen("b_OR")
        offsets: Sequence[Sequence[int]] = [self.offsets[m] for m in members]
        gain_MR, c_MKR = self.gain_MR(members), self.bands_MKR(members)
        form = self.params.form
        if form == "auto":
            out, inner = self.weight_OI.shape
            form = linear_forms.cheapest_banded(x_MNI.shape[1], out, inner, c_MKR.shape[1])
        compute = linear_forms.banded if form == "factored" else linear_forms.banded_matrix
        return compute(x_MNI, a_RI, b_OR, gain_MR, c_MKR, offsets, self.member_bias(members))

    def _crossed(self, member: int, a_RI: Tensor) -> Tensor:
        """Σ_k c_k ∘ shifted rows of A, or of a vector A z."""
        c_KR = self.bands_MKR((member,))[0].detach().to(a_RI.dtype)
        shape = (-1,) + (1,) * (a_RI.dim() - 1)
        parts = [c_R.view(shape) * a_RI.roll(-offset, 0) for c_R, offset in zip(c_KR, self.offsets[member], strict=True)]
        return torch.stack(parts).sum(0)

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        weight_OI, bias = super().merged(member)
        with torch.no_grad():
            return torch.addmm(weight_OI, self.b_OR, self._crossed(member, self.a_RI)), bias

    def change(self, member: int, z_I: Tensor) -> Tensor:
        with torch.no_grad():
            a_RI, b_OR = self.a_RI.double(), self.b_OR.double()
            return super().change(member, z_I) + b_OR @ self._crossed(member, a_RI @ z_I.double())

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        return MatrixLinear.directions(self, member)  # an off-diagonal joins two directions: those of Σ are no longer its own


def require_room(views: Sequence[LinearView], params: Params) -> None:
    """Refuse as many bands as a layer has singular values, before any is decomposed."""
    for view in views:
        rank = min(view.weight_OI.shape)
        if params.shared_bands + params.bands >= rank:
            raise SveError(
                f"method.params.bands is {params.bands} and shared_bands {params.shared_bands}, but '{view.name}' has {rank} "
                "singular values.",
                "Choose fewer bands, or leave the layer out.",
            )


class SveBand:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """That of sve; the off-diagonals' is `band_lr_scale` times it, in relative units even where Σ is absolute.

        With `absolute` that is 1e-3 for them, a tenth of what `relative` gives; band_lr_scale: 10 makes it the same.
        """
        return sve.SVE.default_lr(params)

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: no band is asked for, a rank is given, the residual form, a part of the tokens for the
                gradient, or as many bands as a layer has singular values.
        """
        if params.rank is not None or params.rank_start is not None:
            raise SveError(
                "sve_band trains every direction, but method.params.rank is set.", "Remove rank and rank_start, or use sve."
            )
        if params.form == "residual":
            raise SveError("sve_band computes its layers factored or materialised, not as a residual.", "Write form: auto.")
        if params.sigma_grad_tokens != 1.0:
            raise SveError(
                f"sve_band takes every gradient from all tokens, but sigma_grad_tokens is {params.sigma_grad_tokens}.",
                "Remove it, or use sve.",
            )
        if params.bands + params.shared_bands == 0:
            raise SveError("method.params.bands and shared_bands are both 0, so that no band would train.", "Use sve.")
        network = backbone.fresh()
        context = MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        require_room(views, params)
        swap_linears(
            network, views, lambda v: BandedLinear(v, context, factors.get(v.weight_OI, v.name), params, spec.members, seed)
        )
        facts = {"targets": len(views), "bands": params.bands, "shared_bands": params.shared_bands}
        ensemble = sve.finish(backbone, task, spec, network, context, params, seed, facts)
        layers = [layer for layer in ensemble.member_linears() if isinstance(layer, BandedLinear)]
        own = {f"{x.view.name}.c_MKR": x.c_MKR for x in layers if params.bands}
        shared = {f"{x.view.name}.c_SR": x.c_SR for x in layers if params.shared_bands}
        for named, stacked in ((own, True), (shared, False)):
            if named:
                ensemble.groups.append(ParameterGroup("band", named, stacked=stacked, lr_scale=params.band_lr_scale))
        return ensemble
