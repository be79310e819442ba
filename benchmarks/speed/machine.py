"""The machine: what it is, how busy it is, and its roofline as measured.

Shapes: N side of a square matrix.
"""

from __future__ import annotations

import os
import platform
import resource
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.clock import Clock, digits, seconds_of

SIDES = (256, 512, 1024, 2048)
BUSY_ABOVE = 0.25  # load a core above which the machine counts as busy before anything is measured
OTHERS_ABOVE = 0.1  # share of the processor that others took, above which a measurement counts as disturbed


def device() -> torch.device:
    """Where everything is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> str:
    """What matrix products are measured in: float32 on a CPU, so that those with and without bfloat16 instructions compare."""
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; [] where the system has none."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def describe() -> dict[str, Any]:
    """Processor, threads, versions and device."""
    name = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
    return {
        "processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "system": platform.system(),
        "python": platform.python_version(), "torch": torch.__version__, "mkl": torch.backends.mkl.is_available(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }  # fmt: skip


def is_busy(start: list[float], cores: int | None) -> bool:
    """Whether something else was running when the measurement began."""
    return bool(start) and start[0] > BUSY_ABOVE * (cores or 1)


def processor_time() -> tuple[float, float, float] | None:
    """Seconds over all cores since the start of the machine, seconds of them that anybody used (stolen ones too), and seconds
    of this process and the children it waited for; None where the system does not say."""
    if not os.path.isfile("/proc/stat"):
        return None
    with open("/proc/stat", encoding="ascii") as lines:
        user, nice, system, idle, waiting, irq, soft, stolen = (int(x) for x in next(lines).split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    used = user + nice + system + irq + soft + stolen
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return (used + idle + waiting) / tick, used / tick, sum(u.ru_utime + u.ru_stime for u in usages)


def others_share(start: tuple[float, float, float] | None) -> float | None:
    """Share of all cores that other programs, and other machines on the same host, took since `start`; None: not known."""
    end = processor_time()
    if start is None or end is None or end[0] <= start[0]:
        return None
    whole, used, own = (b - a for a, b in zip(start, end, strict=True))
    return round(min(max((used - own) / whole, 0.0), 1.0), 3)


class GemmProbe:
    """One square matrix product, timed in turns with the contenders: the peak under the conditions they had."""

    def __init__(self, side: int, dtype: torch.dtype) -> None:
        self.flops = 2.0 * side**3
        generator = torch.Generator().manual_seed(0)
        self.a_NN, self.b_NN = (torch.randn(side, side, generator=generator).to(device(), dtype) for _ in range(2))
        self.out_NN = torch.empty_like(self.a_NN)

    def __call__(self, turn: int = 0) -> Tensor:
        return torch.mm(self.a_NN, self.b_NN, out=self.out_NN)


def peak_of(probe: GemmProbe, clock: Clock, seconds: float = 0.5) -> float:
    """FLOP/s of a probe now: the best of as many calls as fit, three at least."""
    times = [seconds_of(probe, clock) for _ in range(3)]
    while len(times) < 50 and sum(times) < seconds:
        times.append(seconds_of(probe, clock))
    return probe.flops / min(times)


def gemm_sweep(dtype: torch.dtype, seconds: float, clock: Clock, sides: tuple[int, ...] = SIDES) -> dict[str, Any]:
    """GFLOP/s of square products by side; the best of the repeats at each, and the best of all."""
    found: dict[str, float] = {}
    for side in sides:
        probe = GemmProbe(side, dtype)
        once = seconds_of(probe, clock)
        found[str(side)] = digits((probe.flops / once if once > seconds else peak_of(probe, clock, seconds)) / 1e9)
        if once > seconds:
            break
    best = max(found, key=lambda s: found[s])
    return {"gflops_by_side": found, "best_side": int(best), "peak_gflops": found[best]}


def triad(clock: Clock, count: int = 2**24, repeats: int = 10) -> float:
    """GB/s of a = b + s·c over arrays far larger than the caches: three streams, the best of the repeats."""
    b, c = torch.ones(count, device=device()), torch.ones(count, device=device())
    a = torch.empty_like(b)
    times = [seconds_of(lambda: torch.add(b, c, alpha=3.0, out=a), clock) for _ in range(repeats)]
    return digits(3 * 4 * count / min(times) / 1e9)


def roofline(seconds: float, clock: Clock, sides: tuple[int, ...] = SIDES, count: int = 2**24) -> dict[str, Any]:
    """Measured peaks: matrix products in float32 and bfloat16, and memory. `seconds`: about how long each size may take."""
    kinds = (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    gemm = {name: gemm_sweep(dtype, seconds, clock, sides) for name, dtype in kinds}
    return {"gemm": gemm, "triad_gb_per_s": triad(clock, count)}
