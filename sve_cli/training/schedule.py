"""What the loop does when: batches of an epoch, epochs of a round, learning rate, precision.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
from torch import Tensor, nn

from sve_cli.ensemble import Round, keyed_generator
from sve_cli.recipe.spec import TrainSpec
from sve_cli.tasks.common import Encoded, masked_logits

WIDE = 192  # narrower networks train faster in float32: docs/performance.md, "bfloat16"
_PROBES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # of torch.cpu
POOL = 64  # batches per bucketing pool: enough to pad little, few enough to keep batches random


def epoch_batches(encoded: Encoded, batch_size: int, seed: int, member: int | str, epoch: int) -> list[np.ndarray]:
    """One member's batches of one epoch: each sample once, similar lengths together.

    A random permutation is cut into pools of 64 batches; inside a pool samples are sorted by length with random ties and cut
    into batches. Batch k has the same length rank for every member, so that members' batches stacked at a step pad little;
    the order of the batches is the same for all members and random.
    """
    n = len(encoded)
    order = torch.randperm(n, generator=keyed_generator(seed, "order", member, epoch)).numpy()
    if encoded.lengths_N is None:
        return [order[i : i + batch_size] for i in range(0, n, batch_size)]
    batches: list[np.ndarray] = []
    for start in range(0, n, POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(encoded.lengths_N[pool], kind="stable")]  # ties keep their random order
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    shuffle = torch.randperm(len(batches), generator=keyed_generator(seed, "batches", epoch)).tolist()
    return [batches[i] for i in shuffle]


def round_steps(spec: TrainSpec, r: Round, batches_per_epoch: int) -> int:
    """Optimiser steps of one round: its share of `train.epochs`, at least one unless that is 0. The last epoch may be cut short."""
    return max(round(spec.epochs * batches_per_epoch * r.epochs_share), 1) if spec.epochs else 0


def learning_rate_factor(step: int, total: int, spec: TrainSpec, restart: bool = False) -> float:
    """Warm-up (none in a cycle that follows another), then cosine, linear or constant; in (0, 1]."""
    warm = 0 if restart else round(spec.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if spec.schedule == "constant":
        return 1.0
    share = (step - warm) / max(total - warm, 1)
    return 0.5 * (1 + math.cos(math.pi * share)) if spec.schedule == "cosine" else 1 - share


def training_precision(spec: TrainSpec, device: torch.device, network: nn.Module) -> torch.dtype:
    """The dtype that the matrix products of a network run in.

    auto: bfloat16 on GPUs that have it, and on CPUs with instructions for it (AMX, AVX-512 BF16) where the network is wide enough.
    """
    if spec.precision != "auto":
        return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _multiplies_bfloat16() and _width(network) >= WIDE else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """As `train.precision` says it."""
    return str(dtype).removeprefix("torch.")


def _multiplies_bfloat16() -> bool:
    """Whether the processor does; without such instructions a product takes five times as long as in float32."""
    return any(bool(probe()) for name in _PROBES if (probe := getattr(torch.cpu, name, None)))


def _width(network: nn.Module) -> float:
    """The smaller side of a weight matrix (O, I), in the median over the network's weights."""
    return statistics.median([min(len(p), p.numel() // len(p)) for p in network.parameters() if p.ndim > 1 and p.numel()] or [0])


def mean_nll(logits_MNC: Tensor, labels_N: Tensor, mask_NC: Tensor | None) -> float:
    """NLL of the members' mean probability, float64; what selection looks at."""
    log_probs = torch.log_softmax(masked_logits(logits_MNC.double(), mask_NC), dim=-1)
    mean_NC = torch.logsumexp(log_probs, dim=0) - math.log(len(logits_MNC))
    return float(-mean_NC.gather(1, labels_N.unsqueeze(1)).mean())
