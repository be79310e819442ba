"""Peak training memory, each contender in a process of its own."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.child import run_children
from benchmarks.speed.clock import digits, ratio
from benchmarks.speed.networks import Shape
from benchmarks.speed.tiers import Context

TARGET = 0.6


def vit_training(context: Context) -> dict[str, Any]:
    """M members of SVE against one full fine-tuning step on as many images."""
    return _row(context, Shape("vit", context.pick(1, 2, 12), context.pick(32, 224, 224), context.pick(2, 8, 32)))


def minilm_training(context: Context) -> dict[str, Any]:
    """M members of SVE against one full fine-tuning step on as many tokens."""
    return _row(context, Shape("minilm", context.pick(1, 2, 6), context.pick(16, 128, 128), context.pick(2, 16, 32)))


def _row(context: Context, shape: Shape) -> dict[str, Any]:
    names = ("sve", "sve_saving", "sve_sequential", "full_joined", *(("lora", "paper") if context.tier == "long" else ()))
    children = [("training_memory", {"shape": vars(shape), "contender": n}) for n in names]
    found = dict(zip(names, run_children(children, context.store), strict=True))
    whole = {n: f["peak"] - f["before"] for n, f in found.items()}
    above = {n: f["peak"] - f["built"] for n, f in found.items()}
    ours, theirs = "sve", "full_joined"
    return {
        "setting": {**vars(shape), "words": shape.words()},
        "contenders": {
            n: {"built_mb": digits((f["built"] - f["before"]) / 1e6), "peak_mb": digits(whole[n] / 1e6)} for n, f in found.items()
        },
        "ratios": [
            ratio("peak", "peak beyond the libraries, against one full fine-tuning step with as many tokens",
                  [whole[ours] / whole[theirs]], TARGET),
            ratio("above_built", "the same beyond the built network", [above[ours] / above[theirs]]),
            ratio("peak_saving", "peak with train.save_memory (full: without)", [whole["sve_saving"] / whole[theirs]],
                  TARGET),
            ratio("peak_sequential", "peak with train.member_execution: sequential (full: one step)",
                  [whole["sve_sequential"] / whole[theirs]], TARGET),
        ],
    }  # fmt: skip
