"""Where the time of a step goes: seconds in each kind of operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.clock import TIMERS, Clock, digits, seconds_of, synchronise

KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "linear"),
    "attention": ("scaled_dot_product",),
    "dropout": ("bernoulli", "dropout"),
    "GELU": ("gelu",),
    "softmax and loss": ("softmax", "nll_loss"),
    "normalisation": ("layer_norm", "batch_norm"),
    "convolution": ("conv",),
    "embedding": ("embedding",),
    "optimiser and clipping": ("adam", "foreach", "vector_norm"),
    "sums": ("aten.sum", "aten.mean"),
    "copies and casts": ("aten.copy_", "aten.clone", "aten.cat", "aten._to_copy", "aten.index", "aten.repeat", "aten.stack"),
    "elementwise": ("aten.mul", "aten.add", "aten.sub", "aten.div", "aten.relu", "aten.where", "aten.threshold", "aten.tanh"),
    "filling with zeros": ("aten.fill_", "aten.zero"),
}


def kind_of(name: str) -> str:
    """The kind of an operation."""
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other operations"


class _Stopwatch(TorchDispatchMode):
    """The seconds of every operation below autograd, by kind. On an accelerator each one is waited for."""

    def __init__(self, timer: Callable[[], float]) -> None:
        super().__init__()
        self.timer = timer
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = self.timer()
        made = func(*args, **(kwargs or {}))
        synchronise()
        kind = kind_of(str(func))
        self.seconds[kind] = self.seconds.get(kind, 0.0) + self.timer() - began
        return made


def profile_step(step: Callable[[], object], clock: Clock) -> dict[str, Any]:
    """Seconds of one step, seconds in matrix products, and the share of each kind of operation, largest first.

    The operations are timed one by one in one step; `Python and dispatch` is what a second step, not watched, takes beyond them.
    """
    with _Stopwatch(TIMERS[clock]) as watch:
        step()
    whole = max(seconds_of(step, clock), sum(watch.seconds.values()))
    seconds = {**watch.seconds, "Python and dispatch": whole - sum(watch.seconds.values())}
    shares = {k: digits(v / whole, 3) for k, v in sorted(seconds.items(), key=lambda kv: -kv[1]) if v / whole >= 0.001}
    return {"seconds": digits(whole), "products_seconds": digits(watch.seconds.get("matrix products", 0.0)), "shares": shares}
