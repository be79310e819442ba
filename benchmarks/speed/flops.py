"""FLOPs of a step: those that its linear layers need by arithmetic, and those that are done.

Shapes: M members, N rows (of all members), O out, I in, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.contenders import PaperLinear
from sve_cli.ensemble import MemberLinear
from sve_cli.linear_forms import RIVALS, Form, training_flops
from sve_cli.methods.lora_ensemble import LoraLinear
from sve_cli.methods.sve import SVELinear
from sve_cli.training import dropout

FORMS: tuple[Form, ...] = ("factored", *RIVALS)


@dataclass(frozen=True)
class Call:
    """One pass through a layer: N rows, and whether the gradient goes on below it."""

    layer: nn.Module
    rows: int
    goes_on: bool

    def needed(self) -> float:
        """FLOPs that the forward and backward pass need, two a multiply-add."""
        out, inner = _shape(self.layer)
        n, below = self.rows, float(self.goes_on)
        if isinstance(self.layer, SVELinear):
            return self._sve(out, inner)
        if isinstance(self.layer, LoraLinear):
            rank = self.layer.lora.A_MRI.shape[1]
            return 2.0 * n * (out * inner * (1 + below) + rank * (out + inner) * 2 + rank * (out + inner * below))
        trained = isinstance(self.layer, PaperLinear) or any(p.requires_grad for p in self.layer.parameters())
        return 2.0 * n * out * inner * (1 + below + float(trained))

    def _sve(self, out: int, inner: int) -> float:
        """The cheapest form's; where the gradient ends here, without the input gradient."""
        assert isinstance(self.layer, SVELinear)
        full = min(out, inner)
        rank = None if self.layer.rank == full else self.layer.rank
        members = len(self.layer.context.members)
        n = self.rows // members
        below = {"factored": full * inner, "materialised": out * inner, "residual": (rank or full) * inner + out * inner}
        each = [training_flops(f, n, out, inner, rank) - (0 if self.goes_on else n * below[f]) for f in FORMS]
        return 2.0 * members * min(each)


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, MemberLinear):
        return int(layer.weight_OI.shape[0]), int(layer.weight_OI.shape[1])
    if isinstance(layer, PaperLinear):
        return int(layer.b_OR.shape[0]), int(layer.a_RI.shape[1])
    assert isinstance(layer, nn.Linear)
    return layer.out_features, layer.in_features


@contextmanager
def linear_calls(network: nn.Module) -> Iterator[list[Call]]:
    """Every call of a linear layer within."""
    calls: list[Call] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        calls.append(Call(layer, x.numel() // x.shape[-1], x.requires_grad))

    kinds = (MemberLinear, PaperLinear, nn.Linear)
    used = [m for n, m in network.named_modules() if isinstance(m, kinds) and "pooler" not in n]  # BERT's has no reader here
    handles = [m.register_forward_pre_hook(note) for m in used]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Attention(TorchFunctionMode):
    """FLOPs that scaled-dot-product attention needs forward and backward (nothing computed twice), from its shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.note(*(*args, *(kwargs or {}).values())[:3])
        return func(*args, **(kwargs or {}))

    def note(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """One call."""
        pairs = query.numel() // query.shape[-1] * key.shape[-2]
        self.flops += 3 * 2.0 * pairs * (query.shape[-1] + value.shape[-1])


@contextmanager
def attention_calls() -> Iterator[_Attention]:
    """Every call within: torch's, and with dropout that of `sve_cli.training`, which takes torch's place."""
    counted, own = _Attention(), dropout.attention

    def noted(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        counted.note(query, key, value)
        return own(query, key, value, *rest)

    dropout.attention = noted
    try:
        with counted:
            yield counted
    finally:
        dropout.attention = own


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step. `linear`, `attention`: needed by those layers; `done`: all products done; `fused`: whether attention
    ran as one operation, and not as products of its own (which is what torch does on a CPU where it has dropout)."""

    linear: float
    attention: float
    done: float
    fused: bool

    @property
    def in_products(self) -> float:
        """Needed FLOPs that show up as matrix products in a profile."""
        return self.linear + (0.0 if self.fused else self.attention)


def step_flops(step: Callable[[], object], network: nn.Module) -> StepFlops:
    """Count one step."""
    with linear_calls(network) as calls, attention_calls() as attention, FlopCounterMode(display=False) as counter:
        step()
    by_op = {str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()}
    fused = any("attention" in op for op in by_op)
    return StepFlops(sum(c.needed() for c in calls), attention.flops, float(sum(by_op.values())), fused)
