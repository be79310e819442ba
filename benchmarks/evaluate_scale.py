"""Time and memory of `sve evaluate --predictions FILE` on generated predictions.

`python benchmarks/evaluate_scale.py [--samples N] [--classes C] [--members M] [--kind logits|probs] [--out FILE]`: writes an npz of
float32, scores it as the command does, in this process and on two cores, and prints one JSON object: seconds, CPU
seconds (the machine may be shared) and the peak of memory above the array in the file. Imports come first and are not counted.
Ends with 1 above 60 s of CPU time on each of two cores or 1 GB, scaled by the number of predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sve_cli.console import Console
from sve_cli.recipe import EvaluateSpec
from sve_cli.workflows.gate_sides import judge_predictions
from sve_cli.workflows.session import environment

SECONDS, CORES, BYTES, SIZE = 60.0, 2, 1e9, 1e8


def peak() -> float:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def write(path: Path, samples: int, classes: int, members: int, kind: str) -> int:
    """Random members that agree more or less, about 75 % right at 100 classes; bytes of the array."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(classes, size=samples)
    values_MNC = np.empty((members, samples, classes), dtype=np.float32)
    for start in range(0, samples, 10_000):
        part = slice(start, min(start + 10_000, samples))
        label_B = labels_N[part]
        shared_BC = rng.standard_normal((len(label_B), classes), dtype=np.float32)
        shared_BC[np.arange(len(label_B)), label_B] += 4
        for member_BC in values_MNC[:, part]:
            member_BC[:] = shared_BC + 0.5 * rng.standard_normal(shared_BC.shape, dtype=np.float32)
            if kind == "probs":
                np.exp(member_BC, out=member_BC)
                member_BC /= member_BC.sum(axis=1, keepdims=True)
    np.savez(path, labels=labels_N, **{kind: values_MNC})
    return values_MNC.nbytes


def main() -> int:
    """Write, score, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--kind", choices=["logits", "probs"], default="logits")
    parser.add_argument("--folder", type=Path, default=None, help="where the file goes; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--file", type=Path, default=None, help="a file written before, instead of a new one")
    arguments = parser.parse_args()
    environment()  # imports what it names
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    n, classes, members = arguments.samples, arguments.classes, arguments.members
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = arguments.file or Path(folder) / "predictions.npz"
        if arguments.file is None and (child := os.fork()) == 0:  # written elsewhere: its memory is not counted here
            write(path, n, classes, members, arguments.kind)
            os._exit(0)
        elif arguments.file is None and os.waitpid(child, 0)[1] != 0:
            return 1
        array, before = 4.0 * n * classes * members, peak()
        start, cpu = time.perf_counter(), time.process_time()
        judged = judge_predictions(path, EvaluateSpec())
        Console(json_mode=True).report(judged.report)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    above = max(peak() - before - array, 0.0)
    share = n * classes * members / SIZE
    found = {
        "samples": n, "classes": classes, "members": members, "kind": arguments.kind,
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "array_mb": round(array / 1e6),
        "peak_above_array_mb": round(above / 1e6), "intervals": judged.report.provenance["intervals"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "numpy": np.__version__,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if arguments.out is not None:
        known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else []
        same = ("samples", "classes", "members", "kind")
        known = [row for row in known if any(row[k] != found[k] for k in same)]
        arguments.out.write_text(json.dumps([*known, found], indent=1) + "\n", encoding="utf-8")
    return int(cpu > SECONDS * CORES * max(share, 0.01) or above > BYTES * max(share, 0.1))


if __name__ == "__main__":
    sys.exit(main())
