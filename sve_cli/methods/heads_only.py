"""M linear heads on the frozen backbone: how much of an ensemble's gain is head diversity alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sve_cli.backbone import Backbone, Inputs
from sve_cli.ensemble import Ensemble, FactorSource, MemberContext, MemberHeads, Output, TaskView
from sve_cli.errors import SveError
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of heads_only."""

    member_batches: Literal["independent", "shared"] = doc(
        "Whether members see independent mini-batches or the same.", "independent"
    )


class HeadsEnsemble(Ensemble):
    """The backbone is the same for every member, so that shared inputs pass it once."""

    shares_features = True

    def forward(self, inputs: Inputs, members: Any = None, per_member: bool = False) -> Output:
        if per_member:
            return super().forward(inputs, members, per_member)
        index = tuple(range(self.n_members)) if members is None else tuple(members)
        features_BF = self.backbone.features(self.network, inputs)
        features_MBF = features_BF.unsqueeze(0).expand(len(index), -1, -1)
        return Output(self.heads(features_MBF, index), features_MBF)

    def averaged_model(self) -> nn.Module:
        return self.backbone.with_head(self.backbone.fresh(), self.averaged_head())


class HeadsOnly:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """There are no parameters besides the heads (`train.head_lr`)."""
        return 1e-3

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: the task's heads are frozen, so that nothing would train.
        """
        heads: MemberHeads = task.make_heads(spec.members, seed)
        if not heads.trainable:
            raise SveError("heads_only would train nothing: the task's head is frozen.", "Write task.head: new.")
        context = MemberContext(tuple(range(spec.members)))
        return HeadsEnsemble(backbone, backbone.fresh(), heads, task.classes, context, member_batches=params.member_batches)
