"""MC dropout: one network trained with dropout in front of every target, and M thinned versions of it at prediction.

Gal and Ghahramani 2016 (arXiv 1506.02142). Training drops elements independently, as usual. Prediction does not: there they
draw fresh elementwise masks; here member m keeps its own units for every input and token (`ThinnedNetworks` says why).
Shapes: M members, B batch, I in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Head, LinearView
from sve_cli.ensemble import (
    Ensemble,
    FactorSource,
    MemberContext,
    MemberHeads,
    ParameterGroup,
    Round,
    TaskView,
    keyed_generator,
)
from sve_cli.methods.full_networks import frozen_parameters
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of mc_dropout."""

    rate: float = doc(
        "Share of the inputs dropped in front of every target, in training and at prediction.", 0.1, low=0.0, high=0.9
    )
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's own dropout is active in training too.", "off")


class OneHead(MemberHeads):
    """The one head that all members share."""

    def forward(self, features_MBF: Tensor, members: Sequence[int]) -> Tensor:
        return super().forward(features_MBF, [0] * len(members))

    def head(self, member: int, classes: list[str]) -> Head:
        return super().head(0, classes)


class ThinnedNetworks(Ensemble):
    """One trained network; a member is a draw of the units it keeps.

    A member must be one plain network, which can be exported and gives an input the same answer in every batch. So it drops a
    unit in all tokens of all inputs: columns of W are gone. Training drops every (token, unit) on its own, so that members
    predict under another noise than the network was trained with, which may be unkind to them.
    """

    masks_MI: dict[str, Tensor]
    views: list[LinearView]
    own_dropout: bool
    drawing = False  # whether units are dropped at random: in training

    def set_training(self, training: bool) -> None:
        super().set_training(training and self.own_dropout)
        self.drawing = training

    def rounds(self) -> list[Round]:
        return [Round((0,), judged_by=tuple(range(self.n_members)))]

    def target_views(self) -> list[LinearView]:
        return self.views

    def member_network(self, member: int) -> nn.Module:
        return self._thinned(lambda mask_MI: mask_MI[member])

    def averaged_model(self) -> nn.Module:
        """The mean of the members' weights: every unit is scaled by the share of members that keep it."""
        return self.backbone.with_head(self._thinned(lambda mask_MI: mask_MI.mean(0)), self.averaged_head())

    def _thinned(self, pick: Callable[[Tensor], Tensor]) -> nn.Module:
        network = self._plain()
        for view in self.views:
            module = network.get_submodule(view.name)
            mask_I = pick(self.masks_MI[view.name]).to(view.weight_OI.device)
            per_unit = view.weight_OI.shape[1] // len(mask_I)  # a convolution has several columns for one channel
            module.weight = nn.Parameter(view.to_native(view.weight_OI * mask_I.repeat_interleave(per_unit)), requires_grad=False)
        return network

    def _plain(self) -> nn.Module:
        network = self.backbone.fresh(share=False)
        network.load_state_dict(self.network.state_dict())
        return network.requires_grad_(False)


def _thin(view: LinearView, ensemble: ThinnedNetworks, rate: float) -> Callable[..., tuple[Tensor, ...]]:
    """The hook in front of one target: random units in training, each member's own units otherwise."""
    mask_MI, context = ensemble.masks_MI[view.name], ensemble.context

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        context.called.add(view.name)
        if ensemble.drawing:
            thinned = F.dropout(x, rate) if view.kind != "conv2d" else F.dropout2d(x, rate)
        else:
            mask = mask_MI[list(context.members)].to(x.device, x.dtype)
            unfolded = x.reshape(len(mask), -1, *x.shape[1:])
            tail = (-1, 1, 1) if view.kind == "conv2d" else (*[1] * (x.ndim - 2), -1)
            thinned = (unfolded * mask.reshape(len(mask), 1, *tail)).reshape(x.shape)
        return (thinned, *rest)

    return hook


def _mask_MI(view: LinearView, n_members: int, rate: float, seed: int) -> Tensor:
    """Kept units of every member, scaled so that the expectation is 1."""
    units = view.native_weight.shape[1] if view.kind == "conv2d" else view.weight_OI.shape[1]
    draws = [torch.rand(units, generator=keyed_generator(seed, "mask", m, view.name)) for m in range(n_members)]
    return (torch.stack(draws) >= rate).float() / (1 - rate)


class MCDropout:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """The rate of `single`."""
        return 1e-4

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`."""
        network = backbone.fresh(share=False)
        context = MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        made = task.make_heads(1, seed)
        heads = OneHead([made.head(0, task.classes)], made.trainable)
        ensemble = ThinnedNetworks(backbone, network, heads, task.classes, context, member_batches="shared", dropout=True)
        ensemble.own_dropout = params.dropout == "checkpoint"
        ensemble.views = views
        ensemble.masks_MI = {v.name: _mask_MI(v, spec.members, params.rate, seed) for v in ensemble.views}
        ensemble.kept = {f"{name}.mask_MI": mask for name, mask in ensemble.masks_MI.items()}
        for view in ensemble.views:
            view.module.register_forward_pre_hook(_thin(view, ensemble, params.rate))
        frozen = frozen_parameters(network, backbone, "train")
        trained = {f"network.{n}": p for n, p in network.named_parameters() if id(p) not in frozen}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        ensemble.groups.append(ParameterGroup("backbone", trained, stacked=False))
        return ensemble
