"""Scaled dot-product attention with dropout on a CPU, in pieces small enough that their scores stay in the cache.

torch's fused kernel for the CPU has no dropout: with it, torch multiplies all scores out and passes over them some ten times,
forward and backward. Here they are kept once, after the softmax, beside a mask of one bit each; or not at all, and computed again.
Shapes: N batch, H heads, T queries, S keys, D width of a head, P pairs of text and head (N·H).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**18  # scores in a piece


class _Attention(torch.autograd.Function):
    """(softmax(scale · q kᵀ + mask) ∘ keep / (1 - rate)) v, of every pair of text and head."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor, scale: float, rate: float, again: bool
    ) -> Tensor:
        shape, (t, s) = q.shape, keep.shape[2:]
        scaled = torch.mul(q, scale, out=torch.empty(shape, dtype=q.dtype))  # smaller than the scores
        q_PTD, k_PSD, v_PSD = (x.reshape(-1, *x.shape[2:]) for x in (scaled, k, v))
        keep_PTS, bits = keep.view(-1, t, s), []
        soft_PTS = None if again else torch.empty(keep_PTS.shape, dtype=q.dtype)
        out_PTD = torch.empty((len(q_PTD), t, v.shape[3]), dtype=q.dtype)
        size = _size(keep_PTS)
        kept, own_soft = (torch.empty((size, t, s), dtype=q.dtype) for _ in range(2))
        for part, c in _pieces(len(q_PTD), size):
            soft = own_soft[:c] if soft_PTS is None else soft_PTS[part]
            _softmax(q_PTD[part], k_PSD[part], mask, part, kept[:c], soft)
            own = keep_PTS[part].numpy()
            _times(soft, own, kept[:c])
            bits.append(torch.from_numpy(np.packbits(own.reshape(-1))))
            torch.bmm(kept[:c], v_PSD[part], out=out_PTD[part])
        ctx.save_for_backward(q_PTD, k_PSD, v_PSD, mask if again else soft_PTS, *bits)
        ctx.settings = (shape[:2], scale, rate, size, again)
        return out_PTD.mul_(1 / (1 - rate)).view(*shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_PTD, k_PSD, v_PSD, soft_or_mask, *bits = ctx.saved_tensors
        lead, scale, rate, size, again = ctx.settings
        d_out = grads[0].reshape(-1, *grads[0].shape[2:]) * (1 / (1 - rate))
        dq, dk, dv = (torch.empty_like(x) for x in (q_PTD, k_PSD, v_PSD))
        room = (size, q_PTD.shape[1], k_PSD.shape[1])
        inner, kept, own_soft = (torch.empty(room, dtype=q_PTD.dtype) for _ in range(3))
        for (part, c), packed in zip(_pieces(len(q_PTD), size), bits, strict=True):
            soft = own_soft[:c] if again else soft_or_mask[part]
            if again:
                _softmax(q_PTD[part], k_PSD[part], soft_or_mask, part, inner[:c], soft)
            _times(soft, np.unpackbits(packed.numpy(), count=soft.numel()).reshape(soft.shape), kept[:c])
            torch.bmm(kept[:c].transpose(1, 2), d_out[part], out=dv[part])
            d = torch.bmm(d_out[part], v_PSD[part].transpose(1, 2), out=inner[:c]).mul_(kept[:c])
            d.addcmul_(soft, d.sum(-1, keepdim=True), value=-1)  # the softmax's gradient
            torch.bmm(d, k_PSD[part], out=dq[part])
            torch.bmm(d.transpose(1, 2), q_PTD[part], out=dk[part])
        dq *= scale
        return *(x.view(*lead, *x.shape[1:]) for x in (dq, dk, dv)), None, None, None, None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, keep: Tensor, rate: float,
    again: bool = False,
) -> Tensor:  # fmt: skip
    """Attention (N, H, T, D) with the dropout mask `keep` (N, H, T, S) given.

    Args:
        mask: bool (True: may be seen) or numbers that are added; of any shape that broadcasts to (N, H, T, S).
        causal: whether query i sees keys 0 to i only.
        scale: of the scores; None: 1 / sqrt(D).
        rate: of the dropout, below 1.
        again: whether the backward pass computes the softmax a second time, to the bit, and nothing is kept of it.
    """
    n, h, t, s = keep.shape
    added = None if mask is None else _added(mask, q.dtype)
    if causal:
        later = torch.ones((1, 1, t, s), dtype=torch.bool).triu(1)
        added = (torch.zeros(()) if added is None else added).to(q.dtype).masked_fill(later, float("-inf"))
    if added is not None:
        dead = torch.isneginf(added).all(-1, keepdim=True)  # sees nothing: its output is 0, as in torch's own attention
        if dead.any():
            keep = keep & ~dead
            added = added.masked_fill(dead, 0.0)
        same = len(added) == 1 and added.shape[1] == 1
        added = added[0] if same else added.expand(n, h, -1, -1).reshape(n * h, *added.shape[2:])
    return _Attention.apply(q, k, v, added, keep, q.shape[3] ** -0.5 if scale is None else scale, rate, again)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of four axes that is added to the scores, no wider than it has to be."""
    whole = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    for axis, (size, stride) in enumerate(zip(whole.shape, whole.stride(), strict=True)):
        if size > 1 and stride == 0 and axis < 3:  # expanded by the library
            whole = whole.narrow(axis, 0, 1)
    if whole.dtype != torch.bool:
        return whole.to(dtype)
    return torch.zeros(whole.shape, dtype=dtype).masked_fill_(~whole, float("-inf"))


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None, part: slice, scores: Tensor, out: Tensor) -> None:
    """The softmax of a piece, into `out`; `scores` is overwritten."""
    torch.bmm(q, k.transpose(1, 2), out=scores)
    if mask is not None:
        scores += mask[part] if len(mask) > 1 else mask
    torch.softmax(scores, -1, out=out)


def _times(scores: Tensor, keep: np.ndarray, out: Tensor) -> None:
    """The scores where they are kept, 0 elsewhere."""
    np.multiply(scores.numpy(), keep.view(np.int8), out=out.numpy(), casting="unsafe", dtype=out.numpy().dtype)


def _size(scores: Tensor) -> int:
    """Pairs in a piece."""
    return min(max(CHUNK * torch.get_num_threads() // scores[0].numel(), 1), len(scores))


def _pieces(n_pairs: int, size: int) -> Iterator[tuple[slice, int]]:
    """The pairs in pieces, each with its number of pairs."""
    for start in range(0, n_pairs, size):
        stop = min(start + size, n_pairs)
        yield slice(start, stop), stop - start
