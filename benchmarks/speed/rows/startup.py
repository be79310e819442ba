"""Starting: the second run of a recipe, `sve --help`, and scoring a predictions file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.speed.child import ROOT, run_child
from benchmarks.speed.clock import Spread, digits, paired, ratio
from benchmarks.speed.networks import minilm_folder, why_not_real
from benchmarks.speed.tiers import Context

PARTS = ("data", "tokenise")  # what the target leaves out besides imports


def second_run(context: Context) -> dict[str, Any]:
    """Seconds from a recipe to its first step beyond imports and data, factors in the store (MiniLM on CLINC150)."""
    why = "not in a tiny run" if context.tier == "tiny" else why_not_real()
    if why:
        return {"skipped": why}
    before = os.environ.get("SVE_CACHE_DIR")
    os.environ["SVE_CACHE_DIR"] = str(context.store)
    try:
        runs = [run_child("first_step", {"model": str(minilm_folder())}, context.store) for _ in range(context.pick(1, 2, 6))]
    finally:
        os.environ.pop("SVE_CACHE_DIR")
        if before is not None:
            os.environ["SVE_CACHE_DIR"] = before
    seconds = [_beyond(r[context.clock]) for r in runs]
    later = runs[1:]
    parts = {k: digits(Spread.of([r[context.clock][k] for r in later]).median, 3) for k in runs[0][context.clock]}
    return {
        "setting": {"words": "recipe clinc150_minilm, first run with an empty store, then again"},
        "contenders": {"first run": {"seconds": Spread.of(seconds[:1]).document()},
                       "second run": {"seconds": Spread.of(seconds[1:]).document(), "parts": parts}},
        "ratios": [ratio("seconds", "seconds to the first step beyond imports and data, second run", seconds[1:], 2.0)],
    }  # fmt: skip


def _beyond(parts: dict[str, float]) -> float:
    """Opening the session reads the data again: what reading alone took is taken off."""
    used = sum(v for k, v in parts.items() if k not in (*PARTS, "first_step"))
    return used - parts["data"]


def _timed(words: list[str], clock: str) -> float:
    """Seconds of a process, by the wall or of the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall if clock == "wall" else after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime


def help_text(context: Context) -> dict[str, Any]:
    """`sve --help` against a process that only imports typer and rich, in turns."""
    commands = {
        "sve --help": [sys.executable, "-c", "import sys; sys.argv = ['sve', '--help']; from sve_cli.cli import main; main()"],
        "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(context.pick(1, 7, 15) + 1):
        for name, words in commands.items():
            seconds = _timed(words, context.clock)
            if turn:
                times[name].append(seconds)
    return {
        "setting": {"words": "fresh processes, in turns"},
        "contenders": {n: {"seconds": Spread.of(t).document()} for n, t in times.items()},
        "ratios": [ratio("vs_imports", "`sve --help` against importing typer and rich", paired(times, *commands), 1.3)],
    }


def score_file(context: Context) -> dict[str, Any]:
    """`sve evaluate --predictions FILE` beyond imports."""
    rows, classes = context.pick((50, 3), (10_000, 150), (10_000, 150))
    found = [
        run_child("score_predictions", {"rows": rows, "classes": classes}, context.store) for _ in range(context.pick(1, 2, 5))
    ]
    seconds = [f[context.clock] for f in found]
    return {
        "setting": {"words": f"{rows:,} x {classes} logits in an npz file, one member"},
        "contenders": {"sve evaluate": {"seconds": Spread.of(seconds).document()}},
        "ratios": [ratio("seconds", "seconds beyond imports", seconds, 2.0)],
    }
