"""How long scoring takes and how much memory it needs above the array of logits: `python benchmarks/scoring.py [--samples N]`.

One member, random logits, every metric with intervals, slices by class included. Prints one line; ends with 1 over the limits.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.scoring import break_down, score

SECONDS, BYTES = 60.0, 1e9  # for 1,000,000 x 100


def peak() -> float:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> int:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    arguments = parser.parse_args()
    n, classes = arguments.samples, arguments.classes
    rng = np.random.default_rng(0)
    labels_N = rng.integers(classes, size=n)
    logits_MNC = rng.standard_normal((1, n, classes), dtype=np.float32)
    logits_MNC[0, np.arange(n), labels_N] += 4
    test = Predictions(logits_MNC, labels_N, [str(i) for i in range(n)], [str(c) for c in range(classes)], "random", "test")
    before, start = peak(), time.perf_counter()
    cpu = time.process_time()
    score(test, EvaluateSpec(), temperature=None)
    middle, scored = time.perf_counter(), time.process_time()
    break_down(test, EvaluateSpec())
    end, broken = time.perf_counter(), time.process_time()
    memory = peak() - before
    sys.stdout.write(
        f"{n:,} x {classes}: score {middle - start:.1f} s (CPU {scored - cpu:.1f} s), slices and classes {end - middle:.1f} s "
        f"(CPU {broken - scored:.1f} s), {memory / 1e6:,.0f} MB above the {logits_MNC.nbytes / 1e6:,.0f} MB of logits\n"
    )
    share = n * classes / 1e8
    return int(end - start > SECONDS * share or memory > BYTES * share)


if __name__ == "__main__":
    sys.exit(main())
