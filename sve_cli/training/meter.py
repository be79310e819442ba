"""How fast a training run is: what passes the network each second, and the share of the machine's matrix-product peak it uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from sve_cli.backbone import Inputs

SIDE = 1024  # of the square product that gives the peak


class Meter:
    """Counts tokens (of texts, padding included) or images through the network, and the FLOPs of the first step.

    Attributes:
        unit: what is counted.
        seconds: that steps took, validation and checkpoints left out.
    """

    def __init__(self) -> None:
        self.unit, self.seen, self.seconds = "images", 0, 0.0
        self.flops_of_one: float | None = None

    def count(self, inputs: Inputs) -> None:
        """A batch passes the network."""
        if "input_ids" in inputs:
            self.unit = "tokens"
            self.seen += inputs["input_ids"].numel()
        else:
            self.seen += sum(int(v.shape[:-3].numel()) for v in inputs.values() if v.ndim >= 4)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around an optimiser step. The products of the first are counted; it is left out of the time."""
        began, seen = time.monotonic(), self.seen
        if self.flops_of_one is not None:
            yield
            self.seconds += time.monotonic() - began
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops_of_one = counter.get_total_flops() / max(self.seen - seen, 1)
        self.seen = 0

    @property
    def per_second(self) -> float:
        """Tokens or images a second, of all members together; 0 before the second step."""
        return self.seen / self.seconds if self.seconds else 0.0

    def utilisation(self, device: torch.device, dtype: torch.dtype) -> float | None:
        """FLOPs a second as a share of those of one square product, measured now; None: nothing was counted."""
        if not self.per_second or not self.flops_of_one:
            return None
        return self.per_second * self.flops_of_one / gemm_peak(device, dtype)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of five."""
    a = torch.ones((SIDE, SIDE), device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.monotonic()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - began)
    return 2.0 * SIDE**3 / best
