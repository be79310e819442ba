"""Dropout on a CPU: masks from 16-bit random numbers, each member's from a generator of its own.

torch's own spends 10 ns a number on a CPU, which was a seventh of a training step; this takes a quarter of that
(docs/performance.md). Within `member_dropout`, every `dropout` and every attention with dropout, of whichever library,
is computed here; what cannot be (other devices, grouped queries) stays torch's. Because member m draws from its own
generator, it drops the same whether members run batched or one after another, where their inputs are padded to the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sve_cli.ensemble import keyed_generator
from sve_cli.training.attention import attention

CHUNK = 2**16  # numbers at a time: what is done to them stays in the cache
STEPS = 2**16  # the rate is rounded to a multiple of 1 / STEPS
T = TypeVar("T")


class Draws:
    """Random masks; `generators`: one for each member, used from call to call."""

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def keep(self, shape: torch.Size, rate: float) -> Tensor:
        """What is kept, a bool tensor. Where axis 0 is the members' batches one after another, each member draws its own."""
        keep = torch.empty(shape, dtype=torch.bool)
        parts = len(self.generators) if shape and shape[0] % len(self.generators) == 0 else 1
        flat = keep.numpy().reshape(parts, -1)
        _each(lambda one: _draw(one[0], one[1], rate), zip(self.generators, flat, strict=False))
        return keep


def _draw(generator: np.random.Generator, out: np.ndarray, rate: float) -> None:
    """Fill `out` with True at a probability of 1 - rate."""
    threshold = round(rate * STEPS)
    if threshold >= STEPS:
        out[:] = False
        return
    for start in range(0, len(out), CHUNK):
        part = out[start : start + CHUNK]
        words = generator.integers(0, 2**64 - 1, -(-len(part) // 4), dtype=np.uint64, endpoint=True)
        np.greater_equal(words.view(np.uint16)[: len(part)], threshold, out=part)


def times_mask(x: Tensor, keep: Tensor, rate: float) -> Tensor:
    """x where it is kept, over 1 - rate, and 0 elsewhere. `keep`: bool as x, or its bits, eight to a byte."""
    if x.dtype == torch.bfloat16:  # numpy has none
        bits = keep if keep.dtype == torch.bool else torch.from_numpy(np.unpackbits(keep.numpy(), count=x.numel()))
        return (x * bits.view(torch.bool).view(x.shape)).mul_(1 / (1 - rate) if rate < 1 else 0)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x_flat, keep_flat, y_flat = (t.contiguous().view(-1).numpy() for t in (x, keep, y))
    scale = x_flat.dtype.type(1 / (1 - rate) if rate < 1 else 0)

    def one(start: int) -> None:
        part = slice(start, start + CHUNK)
        x_part = x_flat[part]
        if keep.dtype == torch.bool:
            own: np.ndarray = keep_flat[part].view(np.int8)
        else:
            own = np.unpackbits(keep_flat[start // 8 : (start + CHUNK) // 8], count=len(x_part))
        np.multiply(x_part, np.multiply(own, scale, dtype=x_flat.dtype, casting="unsafe"), out=y_flat[part])

    _each(one, range(0, len(x_flat), CHUNK))
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(torch.from_numpy(np.packbits(keep.numpy().reshape(-1))))
        ctx.rate = rate
        return times_mask(x, keep, rate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return times_mask(grads[0], ctx.saved_tensors[0], ctx.rate), None, None


class _MemberDropout(TorchFunctionMode):
    """Takes the calls of torch's dropout and of its attention with dropout."""

    def __init__(self, draws: Draws, save_memory: bool) -> None:
        super().__init__()
        self.draws, self.save_memory = draws, save_memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            made = self._dropout(*args, **kwargs)
            return func(*args, **kwargs) if made is None else made
        if func is F.scaled_dot_product_attention:
            made = self._attention(*args, **kwargs)
            return func(*args, **kwargs) if made is None else made
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
        if not training or not 0 < p <= 1 or inplace or not _takes(x):
            return None
        return _Dropout.apply(x, self.draws.keep(x.shape, p), p)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor | None:  # fmt: skip
        whole = all(t.ndim == 4 and t.shape[:2] == query.shape[:2] and _takes(t) for t in (query, key, value))
        if not 0 < dropout_p < 1 or enable_gqa or not whole or (attn_mask is not None and attn_mask.requires_grad):
            return None
        keep = self.draws.keep(torch.Size((*query.shape[:3], key.shape[2])), dropout_p)
        again = self.save_memory and keep.shape[3] > query.shape[3]  # scores are more than what they are made of
        given = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        q, k, v = (t.float() if t.dtype == torch.bfloat16 else t for t in (query, key, value))
        with torch.autocast("cpu", enabled=False):  # in float32: its products are small
            return attention(q, k, v, attn_mask, is_causal, scale, keep, dropout_p, again).to(given)


def _takes(x: Tensor) -> bool:
    """Whether a tensor is of the kind that is computed here."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.bfloat16) and x.numel() > 0


@contextmanager
def member_dropout(seed: int, members: Sequence[int], key: Sequence[int | str], save_memory: bool = False) -> Iterator[None]:
    """Within: dropout on the CPU draws member m's mask from a generator keyed by (seed, "dropout", m, *key).

    `save_memory`: attention computes its softmax again in the backward pass, where that is more than it is made of.
    """
    seeds = [keyed_generator(seed, "dropout", m, *key).initial_seed() for m in members]
    with _MemberDropout(Draws([np.random.Generator(np.random.SFC64(s)) for s in seeds]), save_memory):
        yield


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Do `work` on every item, with as many threads as torch uses (numpy lets go of the interpreter while it computes)."""
    threads = torch.get_num_threads()
    for _ in map(work, items) if threads == 1 else _pool(threads).map(work, items):
        pass
