"""How the cost of a training step grows: members, tokens, width, depth; and the memory of one more member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.speed.child import run_children
from benchmarks.speed.clock import Spread, digits, interleave, ratio
from benchmarks.speed.contenders import EnsembleSteps
from benchmarks.speed.networks import Shape, open_bench
from benchmarks.speed.tiers import Context

BASE = Shape("minilm", 2, 64, 4, width=192)


def _base(context: Context) -> Shape:
    return replace(BASE, width=64, length=8, depth=1, members=2) if context.tier == "tiny" else BASE


def members(context: Context) -> dict[str, Any]:
    """Seconds of a step against M."""
    return _curve(context, "members", context.pick([1, 2], [1, 2, 4], [1, 2, 4, 8, 16, 32]), lambda x: float(x), "a straight line")


def tokens(context: Context) -> dict[str, Any]:
    """Seconds of a step against the tokens of a text; attention adds a square."""
    sizes = context.pick([8, 16], [32, 64, 128], [32, 64, 128, 256, 512])
    return _curve(context, "length", sizes, lambda x: float(x), "a straight line plus attention's square")


def width(context: Context) -> dict[str, Any]:
    """Seconds of a step against the square of the width."""
    sizes = context.pick([32, 64], [96, 192, 384], [96, 192, 384, 768])
    return _curve(context, "width", sizes, lambda x: float(x) ** 2, "a straight line in width² plus elementwise work in width")


def depth(context: Context) -> dict[str, Any]:
    """Seconds of a step against the number of blocks."""
    return _curve(context, "depth", context.pick([1, 2], [1, 2, 4], [1, 2, 4, 8, 16]), lambda x: float(x), "a straight line")


def _curve(context: Context, key: str, sizes: list[int], scale: Callable[[int], float], theory: str) -> dict[str, Any]:
    """Time every size in turns. `growth` is the cost of one unit of `scale` at the largest size, against that at the smallest;
    `off_line` how far the medians lie from the best straight line, relative to the largest."""
    shapes = {str(n): replace(_base(context), **{key: n}) for n in sizes}  # type: ignore[arg-type]
    steps = {name: EnsembleSteps(open_bench(shape, context.store), "sve") for name, shape in shapes.items()}
    times = interleave(steps, context.repeats, context.pick(2.0, 3.0, context.seconds), context.clock)
    x = np.array([scale(n) for n in sizes])
    y = np.array([Spread.of(times[str(n)]).median for n in sizes])
    slope, start = np.polyfit(x, y, 1)
    off = float(np.abs(y - (slope * x + start)).max() / y.max())
    first, last = times[str(sizes[0])], times[str(sizes[-1])]
    grown = [(b / x[-1]) / (a / x[0]) for a, b in zip(first, last, strict=True)]
    return {
        "setting": {"words": f"{_base(context).words()}, but for its {key}: {', '.join(map(str, sizes))}", "theory": theory},
        "contenders": {f"{key} {n}": {"seconds": Spread.of(times[str(n)]).document()} for n in sizes},
        "ratios": [
            ratio("growth", f"cost of one unit at {key} {sizes[-1]} against {key} {sizes[0]}", grown),
            ratio("off_line", "largest distance from a straight line, relative to the largest cost", [off]),
            ratio("fixed", f"the line's cost at 0, relative to {key} {sizes[0]}", [float(start / y[0])]),
        ],
    }


def member_memory(context: Context) -> dict[str, Any]:
    """Peak memory that one more member adds, against the bytes that its backward pass keeps."""
    base = replace(_base(context), batch=context.pick(2, 16, 32), length=context.pick(8, 128, 128))
    sizes = context.pick([1, 2], [1, 4], [1, 2, 4, 8])

    children: list[tuple[str, dict[str, Any]]] = [
        ("training_memory", {"shape": vars(replace(base, members=m)), "contender": contender})
        for contender in ("sve", "sve_saving") for m in sizes
    ]  # fmt: skip
    *found, activations = run_children([*children, ("saved_activations", {"shape": vars(replace(base, members=1))})], context.store)
    peaks = [f["peak"] - f["before"] for f in found]
    plain, saving, kept = peaks[: len(sizes)], peaks[len(sizes) :], activations["bytes"]
    per_member, per_member_saving = (float(np.polyfit(sizes, bytes_, 1)[0]) / kept for bytes_ in (plain, saving))
    title = "memory of one more member against the activations it keeps"
    return {
        "setting": {"words": base.words()},
        "contenders": {f"members {m}": {"peak_mb": digits(b / 1e6)} for m, b in zip(sizes, plain, strict=True)}
        | {f"members {m}, train.save_memory": {"peak_mb": digits(b / 1e6)} for m, b in zip(sizes, saving, strict=True)}
        | {"kept for the backward pass, one member": {"peak_mb": digits(kept / 1e6)}},
        "ratios": [
            ratio("per_member", title, [per_member]),
            ratio("per_member_saving", f"{title} without train.save_memory, with it", [per_member_saving]),
        ],
    }
