"""What runs in a process of its own (see child.py).

Shapes: M members, B batch.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.child import peak, reset_peak, resident


def training_memory(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Bytes of two optimiser steps of a contender: resident before the network, once it is built, and at the peak."""
    from benchmarks.speed.contenders import make
    from benchmarks.speed.networks import Shape, open_bench

    _warm_up()
    before = resident()
    shape = Shape(**settings["shape"])
    step = make(open_bench(shape, store), settings["contender"])
    built = resident()
    reset_peak()
    for turn in range(2):
        step(turn)
    return {"before": before, "built": built, "peak": peak(), "words": shape.words()}


def saved_activations(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Bytes that the backward pass of SVE keeps, besides parameters and frozen tensors; each storage once."""
    from benchmarks.speed.contenders import EnsembleSteps
    from benchmarks.speed.networks import Shape, open_bench

    step = EnsembleSteps(open_bench(Shape(**settings["shape"]), store), "sve")
    lasting = {t.untyped_storage().data_ptr() for t in (*step.ensemble.parameters(), *step.ensemble.buffers())}
    lasting |= {t.untyped_storage().data_ptr() for m in step.ensemble.member_linears() for t in vars(m).get("_cast", {}).values()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        step(0)
    return {"bytes": sum(found.values())}


def predicting(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Bytes while one member after another predicts."""
    from benchmarks.speed.contenders import build
    from benchmarks.speed.networks import Shape, open_bench
    from benchmarks.speed.rows.prediction import dense_passes
    from sve_cli.prediction import predict_logits

    _warm_up()
    tiny = settings["tier"] == "tiny"
    shape = Shape("minilm", 1, 16, 2, width=64) if tiny else Shape("minilm", 6, 16, 32)
    bench = open_bench(shape, store)
    ensemble = build(bench, "sve") if settings["kind"] == "sve" else None
    built = resident()
    reset_peak()
    if ensemble is None:
        dense_passes(bench, bench.encoded, 2)
        return {"built": built, "peak": peak()}
    predict_logits(ensemble, bench.encoded, 128, [0, 1])
    weights = sum(4 * linear.weight_OI.numel() for linear in ensemble.member_linears())
    return {"built": built, "peak": peak(), "weights": weights, "words": f"{shape.words()}, predicting {len(bench.encoded)} texts"}


def _warm_up() -> None:
    """What a process holds once it has computed anything: threads, libraries, work space."""
    x = torch.randn(256, 256, requires_grad=True)
    (x @ x).sum().backward()


def first_step(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Seconds from a recipe to its first optimiser step, in parts; the store of factors is where SVE_CACHE_DIR says."""
    import timm  # noqa: F401
    import transformers  # noqa: F401

    from sve_cli.data.load import load_data
    from sve_cli.recipe import load_recipe
    from sve_cli.registry import METHODS, TASKS
    from sve_cli.training import epoch_batches
    from sve_cli.workflows.session import Silent, open_session
    from sve_cli.workflows.train import lock_of, trainer_for

    recipe = load_recipe("clinc150_minilm", [f"model.name={settings['model']}"]).recipe
    METHODS.resolve(recipe.method.name)
    TASKS.resolve(recipe.task.name)
    from transformers.models.bert import modeling_bert  # noqa: F401  (an import, wherever it happens)

    marks = [("", time.perf_counter(), time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter(), time.process_time()))

    load_data(recipe.data, "text", recipe.seed, None, ("train", "validation", "test"))
    mark("data")
    session = open_session(recipe, Silent())
    mark("open")
    lock_of(session, None)
    mark("digests")
    for name in ("train", "test"):
        session.split(name)
    session.selection_half()
    mark("tokenise")
    ensemble = session.build()
    mark("build")
    trainer = trainer_for(session, ensemble, session.split("train")[1])
    one = trainer.rounds[0]
    keys = list(one.members)
    rows = [epoch_batches(trainer.train, recipe.train.batch_size, recipe.seed, k, 0)[0] for k in keys]
    mark("trainer")
    trainer.dry_step()
    mark("first_step")
    wall = {name: t - marks[i][1] for i, (name, t, _) in enumerate(marks[1:])}
    cpu = {name: t - marks[i][2] for i, (name, _, t) in enumerate(marks[1:])}
    return {"wall": wall, "cpu": cpu, "rows": len(rows)}


def score_predictions(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Seconds of `sve evaluate --predictions FILE` once everything it needs is imported."""
    import numpy as np
    import scipy.optimize
    import scipy.special  # noqa: F401

    import sve_cli.render
    import sve_cli.workflows.evaluate
    import sve_cli.workflows.gate_sides  # noqa: F401
    from sve_cli.cli import app

    n, classes = settings["rows"], settings["classes"]
    rng = np.random.default_rng(0)
    labels_N = rng.integers(classes, size=n)
    logits_NC = rng.standard_normal((n, classes), dtype=np.float32)
    logits_NC[np.arange(n), labels_N] += 3
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"predictions-{n}x{classes}.npz"
    np.savez(path, logits=logits_NC, labels=labels_N)
    wall, cpu = time.perf_counter(), time.process_time()
    app(["evaluate", "--predictions", str(path)], standalone_mode=False)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def forked(settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Measurements one after another, each in a fork of this process, which computes nothing itself so that no thread is lost.

    Raises:
        RuntimeError: one failed.
    """
    import benchmarks.speed.contenders
    import benchmarks.speed.rows.prediction  # noqa: F401 - both: so that a fork need not import them

    context, results = multiprocessing.get_context("fork"), []
    for name, inner in settings["measurements"]:
        receiver, sender = context.Pipe(duplex=False)
        fork = context.Process(target=_send, args=(sender, name, inner, store))
        fork.start()
        sender.close()  # so that the end of a fork that failed is the end of the pipe
        try:
            results.append(receiver.recv())
        except EOFError:
            raise RuntimeError(f"the fork that measured '{name}' failed") from None
        fork.join()
    return {"results": results}


def _send(sender: Connection, name: str, settings: dict[str, Any], store: Path) -> None:
    sender.send(MEASUREMENTS[name](settings, store))


MEASUREMENTS: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "training_memory": training_memory,
    "saved_activations": saved_activations,
    "predicting": predicting,
    "forked": forked,
    "first_step": first_step,
    "score_predictions": score_predictions,
}
