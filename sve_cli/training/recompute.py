"""What the backward pass can compute again from what it keeps anyway is not kept: `train.save_memory`.

Two kinds of results, seen by autograd's hooks for saved tensors, in whichever library's network:
the input of an activation function, where a member's layer made it (its second product is computed again from x V, which that layer
keeps); and the output of an activation or normalisation, where what follows keeps it (computed again from its input, which it keeps
itself). Everything is computed by the same function from the same numbers, so that gradients are the same to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sve_cli.allocator import spare
from sve_cli.ensemble import MemberLinear

VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0")
SMALL = 2**14  # bytes below which a tensor is just kept


class _Source:
    """Computes a result again: once for all that asked to keep it, where they need it one after another."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make, self.uses, self.value = make, 0, cast("Tensor | None", None)

    def take(self) -> Tensor:
        if self.value is None:
            spare().limit()
            with torch.no_grad():
                self.value = self.make()
        value, self.uses = self.value, self.uses - 1
        if self.uses <= 0:
            self.value = None
        return value


@dataclass(frozen=True)
class _Again:
    """Stands for a tensor that is not kept."""

    source: _Source
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Made:
    """A result that can be computed again, while the tensor and its storage live and nothing was written into them."""

    tensor: weakref.ref[Tensor]
    storage: StorageWeakRef  # while this exists, no other storage has its address
    version: int
    source: _Source
    by_product: bool

    def stand_in(self, tensor: Tensor) -> _Again | None:
        """What is kept in the place of a view of it; None: it was written into."""
        own = self.tensor()
        if own is None or own._version != self.version:
            return None
        self.source.uses += 1
        return _Again(self.source, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(kept: Tensor | _Again) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.source.take().as_strided(kept.size, kept.stride, kept.offset)


class _Watch:
    """What the modules of one forward pass made, and which of it autograd asks to keep."""

    def __init__(self) -> None:
        self.made: dict[int, _Made] = {}
        self.inside: list[tuple[nn.Module, set[int]]] = []  # activations and norms that run now, and what they keep

    def pack(self, tensor: Tensor) -> Tensor | _Again:
        """What autograd keeps in the place of a tensor."""
        storage = tensor.untyped_storage()
        for _, kept in self.inside:
            kept.add(storage._cdata)
        made = self.made.get(storage._cdata)
        if made is None or (made.by_product and not self.inside):
            return tensor
        return made.stand_in(tensor) or tensor

    def product(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a member's layer."""
        node = output.grad_fn
        while type(node).__name__ in VIEWS:
            node = node.next_functions[0][0]
        again = getattr(getattr(node, "_forward_cls", None), "again", None)
        if again is not None:
            self._add(output, lambda: again(node), by_product=True)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before an activation or norm."""
        self.inside.append((module, set()))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it: its output need not be kept where its input is."""
        while self.inside:  # one that raised has not left
            last, kept = self.inside.pop()
            if last is module:
                break
        spare().limit()
        plain = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if not plain or args[0].untyped_storage()._cdata not in kept:
            return
        known = self.made.get(args[0].untyped_storage()._cdata)
        before = (known and known.stand_in(args[0])) or args[0].detach()
        device = args[0].device.type
        lowered, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def make() -> Tensor:
            with torch.autocast(device, dtype, enabled=lowered):
                return type(module).forward(module, _unpack(before))

        self._add(output, make, by_product=False)

    def _add(self, output: Tensor, make: Callable[[], Tensor], by_product: bool) -> None:
        storage = output.untyped_storage()
        whole = output.storage_offset() == 0 and storage.nbytes() == output.numel() * output.element_size()
        if whole and storage.nbytes() >= SMALL:
            ref = StorageWeakRef(storage)
            self.made[storage._cdata] = _Made(weakref.ref(output), ref, output._version, _Source(make), by_product)


def _elementwise(module: nn.Module) -> bool:
    """Whether a module is an activation or norm: one tensor in, one out, nothing random, nothing written over."""
    if any(True for _ in module.children()) or getattr(module, "inplace", False):
        return False
    named = type(module)
    norm = named.__name__.endswith("Norm") and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    return norm or "activation" in named.__module__.rpartition(".")[2]


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Within, a forward pass of `network` leaves out what its backward pass can compute again."""
    watch = _Watch()
    handles = []
    for module in network.modules():
        if isinstance(module, MemberLinear):
            handles.append(module.register_forward_hook(watch.product))
        elif _elementwise(module):
            handles += [module.register_forward_pre_hook(watch.enter), module.register_forward_hook(watch.leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, _unpack):
            yield
    finally:
        watch.made.clear()  # the graph holds the hooks, and these would hold the graph
        for handle in handles:
            handle.remove()
