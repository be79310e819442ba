"""Time of the decomposition against torch's float32 SVD, as ratios measured alternately in one run.

python benchmarks/decomposition.py [--threads 2] [--repeats 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sve_cli.factors import decompose_weight, in_out, verify, weight_key

SHAPES = [(1536, 384), (384, 384), (768, 768), (3072, 768), (768, 3072)]


def seconds_of(action: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def gram_only(weight_OI: Tensor) -> Tensor:
    """The bare algorithm: values from the roots of the eigenvalues, no checks, no hash."""
    tall = (weight_OI if weight_OI.shape[1] <= weight_OI.shape[0] else weight_OI.T).double()
    return torch.linalg.eigh(tall.T @ tall).eigenvalues.clamp(min=0).sqrt()


def measure(shape: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Median seconds per contender at one shape, and the median of the paired ratios to `svd_float32`."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    factors = decompose_weight(weight, "benchmark")
    actions: dict[str, Callable[[], object]] = {
        "svd_float32": lambda: torch.linalg.svd(weight, full_matrices=False),
        "svd_float64": lambda: torch.linalg.svd(weight.double(), full_matrices=False),
        "gram_eigh_only": lambda: gram_only(weight),
        "decompose_weight": lambda: decompose_weight(weight, "benchmark", factors.key),
        "verify": lambda: verify(weight, factors, "benchmark"),
        "in_out": lambda: in_out(weight, factors),
        "weight_key": lambda: weight_key(weight),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            elapsed = seconds_of(action)
            if repeat:  # The first round warms up.
                times[name].append(elapsed)
    reference = times["svd_float32"]
    return {
        "shape": list(shape),
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {name: statistics.median(v / r for v, r in zip(values, reference, strict=True)) for name, values in times.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios to the float32 SVD, one shape a line."""
    names = list(rows[0]["ratio"])
    lines = [f"{'shape':>12}" + "".join(f"{name:>18}" for name in names)]
    for row in rows:
        shape = "x".join(str(n) for n in row["shape"])
        lines.append(f"{shape:>12}" + "".join(f"{row['ratio'][name]:>18.3f}" for name in names))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line and write the table, or JSON, to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(shape, arguments.repeats) for shape in SHAPES]
    document = {"torch": torch.__version__, "threads": arguments.threads, "repeats": arguments.repeats, "rows": rows}
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if arguments.json else table(rows))


if __name__ == "__main__":
    main()
