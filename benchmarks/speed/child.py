"""Measurements that need a process of their own: peak memory, and starting up.

`python -m benchmarks.speed.child NAME JSON STORE` runs one and writes a JSON object as its last line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Measurement = tuple[str, dict[str, Any]]  # its name, its settings


def run_child(name: str, settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Run a measurement in a fresh process.

    Raises:
        RuntimeError: it failed; says how it ended.
    """
    words = [sys.executable, "-m", "benchmarks.speed.child", name, json.dumps(settings), str(store)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"The measurement '{name}' ended with {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run_children(measurements: Sequence[Measurement], store: Path) -> list[dict[str, Any]]:
    """Run measurements in processes of their own that are forked from one which has imported everything and computed nothing.

    Raises:
        RuntimeError: one failed; says how it ended.
    """
    import torch

    if "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_available():  # CUDA does not survive a fork
        return [run_child(name, settings, store) for name, settings in measurements]
    found = run_child("forked", {"measurements": measurements}, store)
    results: list[dict[str, Any]] = found["results"]
    return results


def trim() -> None:
    """Give freed memory back to the system, so that what is resident is what is used."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> float:
    """Bytes this process holds now (on an accelerator: that torch holds there)."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    trim()
    return _status("VmRSS")


def reset_peak() -> None:
    """Begin a new peak. Without Linux's interface the peak is that of the whole life."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (path := Path("/proc/self/clear_refs")).exists():
        path.write_text("5", encoding="utf-8")


def peak() -> float:
    """The most bytes held since `reset_peak`."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(key: str) -> float:
    path = Path("/proc/self/status")
    if path.exists():
        line = next(x for x in path.read_text(encoding="utf-8").splitlines() if x.startswith(key + ":"))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def main(words: list[str]) -> int:
    """Run the named measurement."""
    from benchmarks.speed.in_child import MEASUREMENTS

    name, settings, store = words
    sys.stdout.write("\n" + json.dumps(MEASUREMENTS[name](json.loads(settings), Path(store))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
