"""Each member's own normalisation weights (`train_norms`): an extension of the paper that costs 2·D numbers a norm and member.

Shapes: M members, D normalised width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from sve_cli.backbone import block_of, replace_module
from sve_cli.ensemble import MemberContext, MixedMembers
from sve_cli.errors import CheckpointError


class MemberNorm(nn.Module):
    """A LayerNorm or RMSNorm whose scale and shift belong to the member."""

    def __init__(self, name: str, module: nn.Module, context: MemberContext, n_members: int) -> None:
        super().__init__()
        self.name = name
        self.context = context
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        self.weight_MD = nn.Parameter(weight.detach().float().repeat(n_members, 1))
        self.bias_MD = None if bias is None else nn.Parameter(bias.detach().float().repeat(n_members, 1))
        module.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)
        if bias is not None:
            module.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
        self.plain = [module]  # a list, so that the frozen module is no submodule

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemberNorm:
        self.plain[0]._apply(fn, recurse)  # moves with this module to another device or dtype
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        members = [self.context.merged] if self.context.merged is not None else list(self.context.members)
        if x.shape[0] % len(members):
            raise MixedMembers(self.name)
        y = self.plain[0](x)
        shape = (len(members), *[1] * (y.ndim - 1), y.shape[-1])
        unfolded = y.reshape(len(members), -1, *y.shape[1:])
        result = unfolded * self.weight_MD[members].reshape(shape).to(y.dtype)
        if self.bias_MD is not None:
            result = result + self.bias_MD[members].reshape(shape).to(y.dtype)
        return result.reshape(y.shape)

    def write_plain(self, target: nn.Module, member: int | None) -> None:
        """Put a member's weights (None: their mean) into a plain norm."""
        pick = (lambda p: p.detach().mean(0)) if member is None else (lambda p: p.detach()[member].clone())
        target.weight = nn.Parameter(pick(self.weight_MD), requires_grad=False)
        if self.bias_MD is not None:
            target.bias = nn.Parameter(pick(self.bias_MD), requires_grad=False)


def swap_norms(
    network: nn.Module, context: MemberContext, n_members: int, blocks: Collection[str] | None = None
) -> dict[str, MemberNorm]:
    """Replace the norms inside the repeated blocks; returns them by name.

    Args:
        blocks: only the norms of these; None: of all.

    Raises:
        CheckpointError: a norm does not scale by its weight (so that a member's weight cannot be put in its place).
    """
    swapped: dict[str, MemberNorm] = {}
    made: dict[int, MemberNorm] = {}  # a norm that stands in several places is one
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in made:
            replace_module(network, name, made[id(module)])
            continue
        weight, block = getattr(module, "weight", None), block_of(name + ".")
        if "Norm" not in type(module).__name__ or "Batch" in type(module).__name__ or not isinstance(weight, Tensor):
            continue
        if block is None or (blocks is not None and block not in blocks):
            continue
        if weight.ndim != 1 or not _scales_by_weight(module, weight):
            raise CheckpointError(
                f"The norm '{name}' ({type(module).__name__}) cannot have member weights.", "Set train_norms: false."
            )
        replace_module(network, name, norm := MemberNorm(name, module, context, n_members))
        made[id(module)] = norm
        swapped[name] = norm
    return swapped


def _scales_by_weight(module: nn.Module, weight: Tensor) -> bool:
    x = torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0))
    original = module.weight
    bias = getattr(module, "bias", None)
    shift = 0.0 if bias is None else bias.detach()
    try:
        with torch.no_grad():
            before = module(x) - shift
            module.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)
            unit = module(x) - shift
    except (RuntimeError, IndexError, ValueError):  # it puts the channels elsewhere: LayerNorm2d, GroupNorm
        return False
    finally:
        module.weight = original
    return bool(torch.allclose(before, unit * weight, atol=1e-5))
