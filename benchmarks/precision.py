"""Seconds of an optimiser step in bfloat16 over those in float32, by the network's width: what `train.precision: auto` goes by.

    python -m benchmarks.precision [--threads 1] [--layers 2]

Prints a Markdown table of ratios as they are measured, below 1 where bfloat16 is faster: the median over the turns of one process.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.speed.clock import Action, clock_for, interleave, paired
from benchmarks.speed.contenders import EnsembleSteps, FullSteps
from benchmarks.speed.networks import Bench, Shape, open_bench

WIDTHS = (64, 128, 192, 256, 384)
LENGTHS = {"vit": 64, "minilm": 32}  # pixels of a side, or tokens
METHODS = ("sve", "sve_band", "lora_ensemble")
BATCH, TURNS = 16, 5


def ratios(bench: Bench) -> list[float]:
    """bfloat16 / float32 of M full fine-tuning steps, then of each of `METHODS`, all taken in turns."""
    steps: dict[str, Action] = {}
    for products in ("bfloat16", "float32"):
        steps[f"full/{products}"] = FullSteps(bench, products)
        steps |= {f"{m}/{products}": EnsembleSteps(bench, m, {"precision": products}) for m in METHODS}
    times = interleave(steps, TURNS, math.inf, clock_for(torch.get_num_threads() == 1))
    return [statistics.median(paired(times, f"{name}/bfloat16", f"{name}/float32")) for name in ("full", *METHODS)]


def main() -> None:
    """Measure every kind of network at every width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = ["network", "width", "single", *METHODS]
    sys.stdout.write(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n")
    with tempfile.TemporaryDirectory() as store:
        for kind, length in LENGTHS.items():
            for width in WIDTHS:
                bench = open_bench(Shape(kind, given.layers, length, BATCH, width), Path(store))
                found = [kind, str(width), *(f"{value:.2f}" for value in ratios(bench))]
                sys.stdout.write(f"| {' | '.join(found)} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
