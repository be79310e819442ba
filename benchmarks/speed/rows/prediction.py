"""Prediction with every member, merging included, against as many passes of a plain network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.speed.child import run_children
from benchmarks.speed.clock import Spread, digits, interleave, paired, ratio
from benchmarks.speed.contenders import build
from benchmarks.speed.machine import device
from benchmarks.speed.networks import Bench, Shape, open_bench, real_data, why_not_real
from benchmarks.speed.tiers import Context
from sve_cli.prediction import batches_by_length, predict_logits
from sve_cli.tasks.common import Encoded, TokenisedText, tensor_to

BATCH = 128
TARGET, MEMORY_TARGET = 1.03, 1.2


def dense_passes(bench: Bench, encoded: Encoded, members: int) -> np.ndarray:
    """What `members` separately stored networks would cost: the plain network and a head, the same batches."""
    network = bench.backbone.fresh()
    head = torch.nn.Linear(bench.backbone.feature_dim, len(bench.task.classes)).to(device())
    logits_NC = np.zeros((len(encoded), len(bench.task.classes)), dtype=np.float32)
    with torch.inference_mode():
        for _ in range(members):
            for rows in batches_by_length(encoded, BATCH):
                inputs = tensor_to(encoded.batch(rows), device())
                logits_NC[rows] = head(bench.backbone.features(network, inputs).float()).cpu().numpy()
    return logits_NC


def _texts(context: Context) -> tuple[Shape, Encoded | None]:
    """CLINC150's test texts, or random ones of similar lengths in a random MiniLM (None: made from the bench)."""
    if context.tier == "tiny" or why_not_real():
        return Shape("minilm", context.pick(1, 6, 6), 16, context.pick(2, 8, 8), width=context.pick(64, 384, 384)), None
    return Shape("clinc150", 6, 0, 8), None


def _encoded(bench: Bench, shape: Shape, context: Context) -> Encoded:
    if shape.kind == "clinc150":
        test = real_data(("test",)).test
        assert test is not None
        return bench.task.encode(test)
    lengths = np.random.default_rng(0).integers(5, 25, context.pick(20, 4500, 4500))
    ids = [np.random.default_rng(i).integers(0, 99, n).tolist() for i, n in enumerate(lengths)]
    return TokenisedText(ids, np.zeros(len(ids), dtype=np.int64), 0)


def clinc150_test(context: Context) -> dict[str, Any]:
    """The whole test split; the short form uses one member, whose ratio is that of any number."""
    shape, _ = _texts(context)
    members = context.pick(2, 1, 4)
    bench = open_bench(shape, context.store)
    encoded = _encoded(bench, shape, context)
    ensemble = build(bench, "sve")
    chosen = list(range(members))
    actions = {
        "sve": lambda turn: predict_logits(ensemble, encoded, BATCH, chosen, device()),
        "dense": lambda turn: dense_passes(bench, encoded, members),
        "merging": lambda turn: _merge(ensemble, chosen),
    }
    _merge(ensemble, chosen)
    times = interleave(actions, context.repeats, context.seconds, context.clock, warmup=False)
    return {
        "setting": {"words": f"{shape.words()}: {len(encoded)} test texts, {members} of 4 members, batch {BATCH}"},
        "contenders": {n: {"seconds": Spread.of(t).document()} for n, t in times.items()},
        "ratios": [
            ratio("vs_dense", "against as many dense passes, merging included", paired(times, "sve", "dense"), TARGET),
            ratio("merging_share", "merging alone, as a share of the dense passes", paired(times, "merging", "dense")),
        ],
    }


def _merge(ensemble: Any, members: list[int]) -> None:
    for member in members:
        with torch.inference_mode(), ensemble.merged(member):
            pass


def memory(context: Context) -> dict[str, Any]:
    """Peak memory above the built network while predicting one batch size: SVE's against a plain network's."""
    names = ("sve", "dense")
    children = [("predicting", {"kind": n, "tier": context.tier}) for n in names]
    found = dict(zip(names, run_children(children, context.store), strict=True))
    above = {n: f["peak"] - f["built"] for n, f in found.items()}
    extra = (above["sve"] - above["dense"]) / found["sve"]["weights"]
    return {
        "setting": {"words": found["sve"]["words"]},
        "contenders": {n: {"built_mb": digits(f["built"] / 1e6), "peak_mb": digits(f["peak"] / 1e6)} for n, f in found.items()},
        "ratios": [
            ratio("extra_weights", "memory beyond dense passes, in copies of the targets' weights", [extra], MEMORY_TARGET),
        ],
    }
