"""The ensemble: members that share a frozen network and own a few numbers each.

Shapes: M members (axis 0 everywhere), B batch, N rows, C classes, F features, O out, I in. Inside the network the batch is
member-major: row m·B + b belongs to member m.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Head, Inputs, Late, LinearView, replace_module
from sve_cli.errors import CheckpointError, NotExportable, SveError

Role = Literal["sigma", "band", "lora", "scale", "bias", "norm", "head", "backbone"]


@dataclass(frozen=True)
class Output:
    """What a forward pass gives: logits_MBC and the heads' inputs features_MBF."""

    logits_MBC: Tensor
    features_MBF: Tensor


@dataclass(frozen=True)
class Round:
    """One optimisation: these members, this share of the steps, starting from another member or from the checkpoint (None).

    `judged_by`: whose mean the epochs are selected on; None: those that train. `keep_last`: the last step counts, not the best.
    """

    members: tuple[int, ...]
    epochs_share: float = 1.0
    init_from: int | None = None
    judged_by: tuple[int, ...] | None = None
    keep_last: bool = False


@dataclass
class ParameterGroup:
    """Trainable parameters of one role. `stacked`: axis 0 is the member; `lr_scale`: their share of the role's rate."""

    role: Role
    parameters: dict[str, nn.Parameter]
    stacked: bool = True
    lr_scale: float = 1.0


@dataclass
class MemberContext:
    """Which members the next forward pass computes, and which one is merged into the weights (None: none); in a training step
    `draw` is what its random draws are keyed by: the seed and more."""

    members: tuple[int, ...]
    merged: int | None = None
    draw: tuple[int, ...] | None = None
    called: set[str] = field(default_factory=set)


class MixedMembers(CheckpointError):
    """A layer's rows are not blocks, one a member. `layer`: its name."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"The rows of layer '{layer}' are not those of the batch.", "Set train.member_execution: sequential.")
        self.layer = layer


class MemberLinear(nn.Module):
    """A matrix layer with one version per member. Methods implement `forward_MNI` and `merged`."""

    weight_OI: Tensor
    uses_factors = False  # whether it computes in the basis of the decomposition

    def __init__(self, view: LinearView, context: MemberContext) -> None:
        super().__init__()
        self.view = view
        self.context = context
        self._merged: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.context.called.add(self.view.name)
        if self._merged is not None:
            return self.view.apply_native(x, *self._merged)
        if x.shape[0] % len(self.context.members):
            raise MixedMembers(self.view.name)
        x_MNI, fold = self.view.rows(x, len(self.context.members))
        return fold(self.forward_MNI(x_MNI))

    def forward_MNI(self, x_MNI: Tensor) -> Tensor:
        """Rows of the active members in, (M, N, O) out, bias included."""
        raise NotImplementedError

    def merged(self, member: int) -> tuple[Tensor, Tensor | None]:
        """The defined matrix (O, I), float32, and bias of one member."""
        raise NotImplementedError

    def change(self, member: int, z_I: Tensor) -> Tensor:
        """(W_m - W) z of one member, float64 (O,): what this layer adds to the checkpoint's, seen along one vector."""
        return (self.merged(member)[0].double() - self.weight_OI.double()) @ z_I.double()

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """(left_OR, right_RI, size_R) of one member: W_m - W = left @ right, orthogonal directions of these sizes; None: not so."""
        return None

    def merge(self, member: int | None) -> None:
        """Compute as one plain member from now on; None: as the ensemble again."""
        if member is None:
            self._merged = None
            return
        weight_OI, bias = self.merged(member)
        self._merged = (self.view.to_native(weight_OI), bias)

    @property
    def weight(self) -> Tensor:
        """The checkpoint's own weight, for library code that looks at its type or device."""
        return self.view.native_weight

    @property
    def bias(self) -> Tensor | None:
        """The checkpoint's own bias."""
        return self.view.bias


class MemberHeads(nn.Module):
    """One linear head per member: weight_MCF and bias_MC (absent when the checkpoint's own head has none)."""

    def __init__(self, heads: Sequence[Head], trainable: bool = True) -> None:
        super().__init__()
        weight_MCF = torch.stack([h.weight_CF.float() for h in heads])
        self.weight_MCF = nn.Parameter(weight_MCF, requires_grad=trainable)
        biases = [h.bias_C.float() for h in heads if h.bias_C is not None]
        self.bias_MC = nn.Parameter(torch.stack(biases), requires_grad=trainable) if biases else None
        self.trainable = trainable

    def forward(self, features_MBF: Tensor, members: Sequence[int]) -> Tensor:
        index = list(members)
        weight_MCF = self.weight_MCF[index]
        with torch.autocast(features_MBF.device.type, enabled=False):  # heads stay float32, whatever the network runs in
            logits_MBC = torch.bmm(features_MBF.float(), weight_MCF.transpose(1, 2))
        return logits_MBC if self.bias_MC is None else logits_MBC + self.bias_MC[index].unsqueeze(1)

    def head(self, member: int, classes: list[str]) -> Head:
        """One member's head, detached."""
        bias = None if self.bias_MC is None else self.bias_MC[member].detach().clone()
        return Head(self.weight_MCF[member].detach().clone(), bias, classes)


class Ensemble(nn.Module):
    """M members over one backbone.

    `shares_features` says that all members read the same features, so that one pass serves them all.

    Args:
        backbone: the opened checkpoint; it is not changed.
        network: a structural copy of the backbone's network, in which methods have swapped layers.
        heads: the members' heads.
        classes: C class names.
        member_batches: whether the members see the same or independent mini-batches.
        dropout: whether the backbone's dropout is active in training.
    """

    shares_features = False
    late: Late | None = None  # where it is a dictionary, plain networks get their matrices when they are written (see Writing)

    def __init__(
        self,
        backbone: Backbone,
        network: nn.Module,
        heads: MemberHeads,
        classes: list[str],
        context: MemberContext,
        *,
        member_batches: str = "independent",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.heads = heads
        self.classes = classes
        self.context = context
        self.member_batches = member_batches
        self.dropout = dropout
        self.n_members = len(context.members)
        self.backbone = backbone
        self.groups: list[ParameterGroup] = []
        self.facts: dict[str, Any] = {}  # what the method wants the report to say
        self.kept: dict[str, Tensor] = {}  # stored with the trained state, though not trained
        self.decay_origins: dict[str, Tensor] = {}  # parameter name -> what weight decay pulls toward
        if heads.trainable:
            named = {f"heads.{n}": p for n, p in heads.named_parameters()}
            self.groups.append(ParameterGroup("head", named))

    def forward(self, inputs: Inputs, members: Sequence[int] | None = None, per_member: bool = False) -> Output:
        """Logits and features of `members` (default: all).

        Args:
            inputs: tensors (B, …), the same for every member; with `per_member`, tensors (M, B, …), one batch a member.
        """
        index = tuple(range(self.n_members)) if members is None else tuple(members)
        m = len(index)
        if per_member:
            folded = {k: v.flatten(0, 1) for k, v in inputs.items()}
        else:
            folded = {k: v if m == 1 else v.repeat(m, *[1] * (v.ndim - 1)) for k, v in inputs.items()}
        self.context.members = index
        features = self._features(folded, index)
        features_MBF = features.reshape(m, -1, features.shape[-1])
        return Output(self.heads(features_MBF, index), features_MBF)

    def _features(self, folded: Inputs, members: tuple[int, ...]) -> Tensor:
        return self.backbone.features(self.network, folded)

    def rounds(self) -> list[Round]:
        """The optimisations this method needs; one of all members unless a method says otherwise."""
        return [Round(tuple(range(self.n_members)))]

    def on_progress(self, share: float) -> None:
        """What follows a schedule: called before every optimiser step with the share of the round's steps that are done."""

    def touched(self, members: tuple[int, ...]) -> set[str]:
        """Names of the trained state that training these members may change."""
        return set(self.trainable())

    def copy_member(self, source: int, target: int) -> None:
        """Give member `target` the trained state of member `source`."""
        with torch.no_grad():
            for group in self.groups:
                for parameter in group.parameters.values() if group.stacked else ():
                    parameter[target] = parameter[source]

    def set_training(self, training: bool) -> None:
        """Dropout only where the method asks for it; normalisation statistics stay frozen."""
        self.network.train(training and self.dropout)
        for module in (m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            module.eval()

    def member_linears(self) -> Iterator[MemberLinear]:
        """The swapped layers, in network order."""
        return (m for m in self.network.modules() if isinstance(m, MemberLinear))

    def target_views(self) -> list[LinearView]:
        """The layers the method chose, all of which the network must call; those it swapped unless it says otherwise."""
        return [linear.view for linear in self.member_linears()]

    @contextmanager
    def merged(self, member: int) -> Iterator[None]:
        """Within: the network computes as this plain member, by its definition, with one member's weights in memory."""
        linears = list(self.member_linears())
        try:
            for linear in linears:
                linear.merge(member)
            self.context.merged = member
            yield
        finally:
            for linear in linears:
                linear.merge(None)
            self.context.merged = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by name."""
        return {name: p for group in self.groups for name, p in group.parameters.items()}

    def _stored(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {**self.trainable(), **self.kept}
        if not self.heads.trainable:
            own |= {f"heads.{n}": p for n, p in self.heads.named_parameters()}
        return own

    def state(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The trained state: what `ensemble.safetensors` holds; a copy of these of its tensors, or of all."""
        stored = self._stored()
        return {name: p.detach().clone().contiguous() for name, p in stored.items() if names is None or name in names}

    def load_trained(self, state: Mapping[str, Tensor], partial: bool = False) -> None:
        """Put a trained state in place; `partial`: what is missing in it stays as it is.

        Raises:
            CheckpointError: a tensor is missing, left over or of another shape; nothing is re-initialised.
        """
        own = {name: p for name, p in self._stored().items() if not partial or name in state}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise CheckpointError(
                f"The trained state does not fit: missing {missing[:3] or 'nothing'}, left over {extra[:3] or 'nothing'}.",
                "It belongs to another recipe, method or checkpoint.",
            )
        for name, target in own.items():
            if state[name].shape != target.shape:
                raise CheckpointError(f"'{name}' has shape {tuple(state[name].shape)}, expected {tuple(target.shape)}.")
            with torch.no_grad():
                target.copy_(state[name])

    def member_network(self, member: int) -> nn.Module:
        """A plain copy of the backbone's network with this member's weights, without head."""
        network = self.backbone.fresh()
        self._write_plain(network, lambda linear: linear.merged(member))
        return network

    def _write_plain(self, network: nn.Module, merged: Callable[[MemberLinear], tuple[Tensor, Tensor | None]]) -> None:
        own = self.backbone.own_classifier(network)  # its rows may become a head, so its weights are needed at once
        for linear in self.member_linears():
            weight_OI, bias = merged(linear)
            module = network.get_submodule(linear.view.name)
            native = linear.view.to_native(weight_OI)
            if self.late is not None and all(module is not m for m in own):
                module.weight = nn.Parameter(torch.empty_like(native, device="meta"), requires_grad=False)
                self.late[id(module.weight)] = lambda linear=linear: linear.view.to_native(merged(linear)[0])  # type: ignore[misc]
            else:
                module.weight = nn.Parameter(native, requires_grad=False)
            if bias is not None:
                module.bias = nn.Parameter(bias.clone(), requires_grad=False)

    def member_model(self, member: int) -> nn.Module:
        """Member m as the library's own classifier.

        Raises:
            NotExportable: this method's members are not plain networks.
        """
        if not 0 <= member < self.n_members:
            raise SveError(f"There is no member {member}; this ensemble has {self.n_members} (0 to {self.n_members - 1}).")
        return self.backbone.with_head(self.member_network(member), self.heads.head(member, self.classes))

    def averaged_model(self) -> nn.Module:
        """One network with the mean of the members' parameters. It is not the ensemble and has its own numbers.

        Raises:
            NotExportable: the members do not share a parametrisation in which a mean makes sense.
        """
        raise NotExportable("The members of this method cannot be averaged into one network.", "Export merged members instead.")

    def averaged_head(self) -> Head:
        """The mean of the members' heads."""
        if not self.heads.trainable:  # all the same, and to stay so to the bit: a tied head stays tied
            return self.heads.head(0, self.classes)
        bias = None if self.heads.bias_MC is None else self.heads.bias_MC.detach().mean(0)
        return Head(self.heads.weight_MCF.detach().mean(0), bias, self.classes)

    def parameter_table(self) -> dict[str, int]:
        """Trained numbers by role, all members together."""
        table: dict[str, int] = {}
        for group in self.groups:
            table[group.role] = table.get(group.role, 0) + sum(p.numel() for p in group.parameters.values())
        return table


def swap_linears(
    network: nn.Module, views: Sequence[LinearView], make: Callable[[LinearView], MemberLinear]
) -> dict[str, MemberLinear]:
    """Replace layers of `network` by member layers, at every place where a shared layer stands; returns them by name."""
    places: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    swapped = {view.name: make(view) for view in views}
    for view in views:
        for name in places[id(view.module)]:
            replace_module(network, name, swapped[view.name])
    return swapped


class TaskView(Protocol):
    """What a method needs to know of the task."""

    classes: list[str]

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        """The members' heads at step 0."""


class FactorSource(Protocol):
    """Where a method gets the singular value decomposition of a weight."""

    def get(self, weight_OI: Tensor, name: str) -> Any:
        """The factors of one weight (sve_cli.factors.Factors)."""


class Method(Protocol):
    """A method: a frozen `Params` dataclass, learning rates that suit it, and `build`. It owns no loop, parser or metric."""

    Params: type

    @staticmethod
    def default_lr(params: Any) -> float:
        """Learning rate of the method's own parameters when the recipe names none."""

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: Any, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """The untrained ensemble. `spec` is the recipe's MethodSpec."""


def keyed_generator(seed: int, *key: object) -> torch.Generator:
    """A generator for one purpose: every random draw is keyed by (seed, purpose, member, epoch), never by call order."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
