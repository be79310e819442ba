"""Training steps: M members of SVE against M full fine-tuning steps, the paper's form and LoRA-Ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.speed.clock import Spread, digits, interleave, paired, ratio
from benchmarks.speed.contenders import make
from benchmarks.speed.flops import StepFlops, step_flops
from benchmarks.speed.machine import GemmProbe, peak_of, precision
from benchmarks.speed.networks import Shape, open_bench, why_not_real
from benchmarks.speed.tiers import Context
from benchmarks.speed.where import profile_step

SMALL, LARGE = {"full": 0.50, "paper": 0.40, "lora": 0.90, "quarter": 0.8}, {"full": 0.85, "lora": 1.2, "quarter": 0.8}
PEAK_SHARE = 0.60
PROFILES = 5  # most profiles of a step
NAMES = {"full": "M full fine-tuning steps", "paper": "the paper's form", "lora": "LoRA-Ensemble, rank 8"}


def vit_small_batch(context: Context) -> dict[str, Any]:
    """ViT-S, 224 px, 4 images a member."""
    return _row(context, Shape("vit", context.pick(1, 2, 12), context.pick(32, 224, 224), context.pick(2, 4, 4)), SMALL)


def vit_large_batch(context: Context) -> dict[str, Any]:
    """ViT-S, 224 px, 32 images a member."""
    return _row(context, Shape("vit", context.pick(1, 2, 12), context.pick(32, 224, 224), context.pick(4, 32, 32)), LARGE)


def minilm_small_batch(context: Context) -> dict[str, Any]:
    """MiniLM's architecture, 128 tokens, 8 texts a member."""
    return _row(context, Shape("minilm", context.pick(1, 2, 6), context.pick(16, 128, 128), context.pick(2, 8, 8)), SMALL)


def minilm_large_batch(context: Context) -> dict[str, Any]:
    """MiniLM's architecture, 128 tokens, 32 texts a member."""
    return _row(context, Shape("minilm", context.pick(1, 1, 6), context.pick(16, 128, 128), context.pick(4, 32, 32)), LARGE)


def clinc150_small_batch(context: Context) -> dict[str, Any]:
    """MiniLM-L6 on CLINC150's own batches, 8 texts a member."""
    return _real(context, 8, SMALL)


def clinc150_large_batch(context: Context) -> dict[str, Any]:
    """MiniLM-L6 on CLINC150's own batches, 32 texts a member."""
    return _real(context, 32, LARGE)


def check_transformer(context: Context) -> dict[str, Any]:
    """A small BERT: what the regression check measures."""
    shape = Shape("minilm", context.pick(1, 1, 1), context.pick(16, 64, 64), 4, width=context.pick(64, 384, 384))
    return _row(replace(context, repeats=context.pick(2, 9, 9)), shape, SMALL | LARGE, judged=False, profiled=False)


def _real(context: Context, batch: int, targets: dict[str, float]) -> dict[str, Any]:
    why = why_not_real()
    return {"skipped": why} if why else _row(context, Shape("clinc150", 6, 0, batch), targets)


def _row(context: Context, shape: Shape, targets: dict[str, float], judged: bool = True, profiled: bool = True) -> dict[str, Any]:
    if context.tier == "tiny":
        shape = replace(shape, width=64)
    bench = open_bench(shape, context.store)
    names = ["sve", "full", "lora", *(["paper"] if "paper" in targets else []), "sve_quarter"]
    names += ["sve_sequential"] if context.tier != "short" else []
    steps = {name: make(bench, name) for name in names}
    flops = {name: step_flops(partial(step, 0), step.network) for name, step in steps.items()}  # and warms up
    times = interleave(steps, context.repeats, context.seconds, context.clock, warmup=False)
    goal = targets if judged else {}
    ratios = [ratio(f"vs_{k}", f"against {NAMES[k]}", paired(times, "sve", k), goal.get(k)) for k in NAMES if k in times]
    title = "rank R/4 against LoRA-Ensemble, rank 8"
    ratios.append(ratio("quarter_vs_lora", title, paired(times, "sve_quarter", "lora"), goal.get("quarter")))
    if "sve_sequential" in times:
        ratios.append(ratio("sequential", "members one after another against all at once", paired(times, "sve_sequential", "sve")))
    found: dict[str, Any] = {
        "setting": {**vars(shape), "words": shape.words(), "precision": precision()},
        "contenders": {
            n: {"seconds": Spread.of(t).document(), "gflop_needed": digits((flops[n].linear + flops[n].attention) / 1e9),
                "gflop_done": digits(flops[n].done / 1e9)}
            for n, t in times.items()
        },
        "ratios": ratios,
    }  # fmt: skip
    if profiled:
        _profiles(found, steps, flops, targets is LARGE, context)
    return found


def _best_of(step: Callable[[], object], probe: GemmProbe, context: Context) -> tuple[dict[str, Any], float]:
    """The quickest of a few profiles and the highest of the peaks measured between them: the machine at its best for both."""
    peaks, profiles = [peak_of(probe, context.clock)], []
    while not profiles or (len(profiles) < PROFILES and sum(p["seconds"] for p in profiles) < context.seconds / 4):
        profiles.append(profile_step(step, context.clock))
        peaks.append(peak_of(probe, context.clock))
    return min(profiles, key=lambda p: p["products_seconds"]), max(peaks)


def _profiles(found: dict[str, Any], steps: dict[str, Any], flops: dict[str, StepFlops], large: bool, context: Context) -> None:
    """Add where the time goes, and the share of the measured GEMM peak that the products and the whole step reach."""
    probe = GemmProbe(context.pick(128, 1024, 2048), getattr(torch, precision()))
    for name in ("sve", "full"):
        profile, peak = _best_of(partial(steps[name], 0), probe, context)
        products = flops[name].in_products / max(profile["products_seconds"], 1e-9) / peak
        whole = (flops[name].linear + flops[name].attention) / profile["seconds"] / peak
        shares = {"of_products": digits(products, 3), "of_step": digits(whole, 3), "peak_gflops": digits(peak / 1e9)}
        found["contenders"][name] |= {"profile": profile, "gemm_peak_share": shares}
    if large:
        own = found["contenders"]
        title = "share of the GEMM peak in the step's products, needed FLOPs only"
        mine, full = (own[n]["gemm_peak_share"]["of_products"] for n in ("sve", "full"))
        line = ratio("gemm_peak_share", f"{title} (full fine-tuning: {full:.2f})", [mine], PEAK_SHARE, at_least=True)
        found["ratios"].append(line)
