"""What the methods that keep every matrix of the checkpoint share: frozen tensors cast once, biases, plain averages.

Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, LinearView, has_attention
from sve_cli.ensemble import Ensemble, MemberContext, MemberLinear, ParameterGroup, keyed_generator
from sve_cli.methods.member_norms import MemberNorm
from sve_cli.recipe.spec import MethodSpec

Biases = Literal["member", "shared", "frozen"]
BIASES = "What trains of the biases of target layers: each member its own, one for all members, or nothing."


def pick(stacked: Tensor, members: tuple[int, ...]) -> Tensor:
    """The rows of these members; the tensor itself when they are all, in order."""
    return stacked if members == tuple(range(len(stacked))) else stacked[list(members)]


class MatrixLinear(MemberLinear):
    """A target whose matrix W (O, I) stays frozen; its bias is the checkpoint's, each member's own, or one they train together.

    Args:
        view: the layer in the network's copy.
        context: which members compute.
        n_members: M.
        seed: of the members' biases at the start, b + N(0, bias_init²).
        biases: whose biases train, where the layer has one.
        bias_init: the spread of the members' own.
    """

    def __init__(
        self, view: LinearView, context: MemberContext, n_members: int, seed: int, biases: Biases = "frozen", bias_init: float = 0.0
    ) -> None:
        super().__init__(view, context)
        self.n_members = n_members
        self.register_buffer("weight_OI", view.weight_OI, persistent=False)
        self.bias_MO: nn.Parameter | None = None
        bias_O = view.bias
        if bias_O is not None and biases == "shared":
            self.bias_MO = nn.Parameter(bias_O.detach().float().unsqueeze(0).clone())
        elif bias_O is not None and biases == "member":
            draws = [torch.randn(len(bias_O), generator=keyed_generator(seed, "bias", m, view.name)) for m in range(n_members)]
            self.bias_MO = nn.Parameter(bias_O.detach().float() + bias_init * torch.stack(draws))
        self.shares_bias = biases == "shared"
        self._cast: dict[str, Tensor] = {}

    def share_weight(self) -> None:
        """W is the checkpoint's own tensor again, where moving to another device made two of it."""
        if self.view.kind != "conv1d" and self.view.native_weight.dtype == torch.float32:
            self.weight_OI = self.view.weight_OI

    def frozen(self, name: str) -> Tensor:
        """A frozen tensor in the precision products run in, cast once and not at every step."""
        tensor: Tensor = getattr(self, name)
        if not torch.is_autocast_enabled(tensor.device.type):
            return tensor
        dtype = torch.get_autocast_dtype(tensor.device.type)
        kept = self._cast.get(name)
        if kept is None or (kept.dtype, kept.device) != (dtype, tensor.device):
            kept = self._cast[name] = tensor.to(dtype)
        return kept

    def member_bias(self, members: tuple[int, ...]) -> Tensor | None:
        """Biases (M, O), or (1, O) where the members share one; None: the layer has none."""
        if self.bias_MO is None:
            return None if self.view.bias is None else self.view.bias.unsqueeze(0)
        return self.bias_MO if self.shares_bias else pick(self.bias_MO, members)

    def plain_bias(self, member: int | None) -> Tensor | None:
        """One member's bias, or the mean of all (None), detached."""
        if self.bias_MO is None:
            return self.view.bias
        return self.bias_MO.detach().mean(0) if member is None or self.shares_bias else self.bias_MO[member].detach()

    def directions(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """The singular vectors of W_m - W, from a decomposition of its own (float64): the best cut at every rank."""
        change_OI = self.merged(member)[0].double() - self.weight_OI.double()
        left_OR, size_R, right_RI = torch.linalg.svd(change_OI, full_matrices=False)
        return (left_OR * size_R).float(), right_RI.float(), size_R

    def averaged(self) -> tuple[Tensor, Tensor | None]:
        """The mean of the members' defined matrices, and of their biases."""
        total_OI = self.merged(0)[0]
        for member in range(1, self.n_members):
            total_OI = total_OI + self.merged(member)[0]
        return total_OI / self.n_members, self.plain_bias(None)


class MatrixEnsemble(Ensemble):
    """Members that are plain networks with matrices of their own; their mean is one too."""

    def member_network(self, member: int) -> nn.Module:
        network = super().member_network(member)
        self._write_norms(network, member)
        return network

    def averaged_model(self) -> nn.Module:
        network = self.backbone.fresh()

        def averaged(linear: MemberLinear) -> tuple[Tensor, Tensor | None]:
            assert isinstance(linear, MatrixLinear)
            return linear.averaged()

        self._write_plain(network, averaged)
        self._write_norms(network, None)
        return self.backbone.with_head(network, self.averaged_head())

    def _write_norms(self, network: nn.Module, member: int | None) -> None:
        for norm in (m for m in self.network.modules() if isinstance(m, MemberNorm)):
            norm.write_plain(network.get_submodule(norm.name), member)

    def add_biases(self) -> None:
        """The group of trained biases, if there are any. They are absolute: decay pulls them toward the checkpoint's."""
        own = {linear.view.name: linear for linear in self.member_linears() if isinstance(linear, MatrixLinear)}
        biases = {f"{n}.bias_MO": linear.bias_MO for n, linear in own.items() if linear.bias_MO is not None}
        if biases:
            stacked = not any(linear.shares_bias for linear in own.values())
            self.groups.append(ParameterGroup("bias", biases, stacked=stacked))
            self.decay_origins |= {f"{n}.bias_MO": b for n, linear in own.items() if (b := linear.view.bias) is not None}


def attention_or_all(backbone: Backbone, spec: MethodSpec, network: nn.Module) -> list[LinearView]:
    """The recipe's targets; where it says `auto`, the attention layers, or all in a network without any (a ResNet)."""
    if spec.targets == "auto" and has_attention(network, spec):
        spec = replace(spec, targets="attention")
    return backbone.targets(spec, network)
