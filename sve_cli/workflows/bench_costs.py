"""What each row of a benchmark costs, measured side by side in one process, in turns, as ratios to `single`.

Shapes: M members, B batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sve_cli.backbone import Inputs
from sve_cli.benchmark import REFERENCE, row_name
from sve_cli.benchmark.values import is_number
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.recipe import Recipe
from sve_cli.rundir import read_json, write_json
from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, tensor_to
from sve_cli.training import mixing_layer
from sve_cli.workflows.bench_cells import Study
from sve_cli.workflows.session import Log, Session, Silent, open_session
from sve_cli.workflows.train import total_steps, trainer_for

BATCHES = 3  # training batches of one measurement
ROUNDS = 3  # measurements of training; their median counts
REPEATS = (7, 100)  # fewest and most measurements of a latency
LATENCY_SECONDS = 1.0  # as many of them as fit in this time
SCATTER = 1 / 3  # between the quartiles of the measurements, relative to their median: more is said


def read_costs(out: Path) -> dict[str, Any] | None:
    """The costs measured so far in a benchmark's folder; None: none.

    Raises:
        SveError: costs.json is damaged.
    """
    path, again = out / "costs.json", "Remove it, and they will be measured again."
    if not path.is_file():
        return None
    document = read_json(path, again)
    methods = document.get("methods") if isinstance(document, dict) else None
    if not isinstance(methods, dict) or not all(isinstance(costs, dict) for costs in methods.values()):
        raise SveError(f"'{path}' holds no costs.", again)
    noisy = document.get("noisy", [])
    if not isinstance(noisy, list) or not all(isinstance(row, str) for row in noisy):
        raise SveError(f"'{path}' is damaged: noisy is no list of rows.", again)
    for row, measured in methods.items():
        if (key := next((k for k, value in measured.items() if not is_number(value)), None)) is not None:
            raise SveError(f"'{path}' is damaged: methods.{row}.{key} is not a number.", again)
    return dict(document)


def measure_costs(study: Study, log: Log) -> dict[str, Any]:
    """Training time and FLOPs, prediction FLOPs and latency of every row, stored in costs.json; rows already there are kept.

    A row's costs do not depend on what was learned, so that untrained ensembles serve. Members predict one after another as
    plain networks or all at once, whichever is faster. A row that cannot be measured is left out with a warning.

    Raises:
        SveError: costs.json is damaged or cannot be written, or a recipe cannot be loaded.
    """
    document: dict[str, Any] = read_costs(study.out) or {"methods": {}}
    rows = {row_name(m, p): (m, p) for p in study.points() for m in study.methods}
    missing = [name for name in rows if name not in document["methods"]]
    if not missing:
        return document
    recipes = {REFERENCE: study.cost_reference().recipe}
    recipes |= {name: study.load(*rows[name]).recipe for name in missing if name != REFERENCE}
    measured = _measure(study, recipes, log)
    if REFERENCE not in measured:
        log.warn(f"No costs are shown: they are relative to {REFERENCE}.")
        return document
    reference = measured[REFERENCE]
    whole = reference["stretch"]
    for found in measured.values():  # as if every row were measured on the same share of its training
        share = found.pop("stretch") / whole
        found |= {key: share * found[key] for key in ("train_time", "train_flops")}
    if noisy := sorted({name for name, found in measured.items() if found.pop("scatter") > SCATTER}):
        document["noisy"] = sorted({*document.get("noisy", []), *noisy})
        log.warn(
            f"The times of {', '.join(noisy)} differ from one measurement to the next: this machine was busy. To measure them "
            f"again, remove '{study.out / 'costs.json'}'."
        )
    for name, found in measured.items():
        ratios = {k: v / reference[k] for k, v in found.items() if reference[k]}
        document["methods"][name] = {**ratios, **{f"{k}_absolute": v for k, v in found.items()}}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    document |= {"reference": REFERENCE, "threads": torch.get_num_threads(), "device": device}
    write_json(study.out / "costs.json", document)
    return document


def _measure(study: Study, recipes: dict[str, Recipe], log: Log) -> dict[str, dict[str, float]]:
    sessions: dict[str, Session] = {}
    results: dict[str, dict[str, float]] = {}
    with log.progress(len(recipes) * (ROUNDS + 1), "Measuring costs") as advance:
        for name, recipe in recipes.items():
            try:
                session = _session(recipe, study.limit, sessions)
                results[name] = _flops(session, recipe)  # goes all the ways that are timed below, and warms them up
                sessions[name] = session
            except (SveError, RuntimeError) as error:
                log.warn(f"The costs of {name} cannot be measured: {error}")
            advance(1, name)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            for name in sessions:  # never a row twice in a row: one moment of other work would be its median
                seconds[name].append(_train(sessions[name], recipes[name]))
                advance(1, name)
    for name, times in seconds.items():
        results[name]["train_time"], results[name]["scatter"] = _middle(times)
    for batch in (1, 32):
        for name, (seconds_each, scatter) in _latencies(sessions, batch).items():
            results[name][f"latency_{batch}"] = seconds_each
            results[name]["scatter"] = max(scatter, results[name]["scatter"])
    return results


def _flops(session: Session, recipe: Recipe) -> dict[str, float]:
    """FLOPs of the training that is measured, and of a prediction; `stretch`: the steps of the whole training over those of it."""
    with FlopCounterMode(display=False) as counter:
        _train(session, recipe)
    inputs = _inputs(session, 1)
    ensemble = session.build(log_store=False)
    few = replace(session, data=replace(session.data, train=_few(session, recipe)))
    # Cycles are rounded to a step at least, which weighs on a few batches; where sizes are swept, rows have steps of their own.
    stretch = max(total_steps(session, ensemble), 1) / max(total_steps(few, ensemble), 1)
    ensemble.set_training(False)
    with torch.inference_mode():
        for run in _ways(session, ensemble, inputs).values():
            run()
    return {"train_flops": float(counter.get_total_flops()), "predict_flops": _predict_flops(session), "stretch": stretch}


def _session(recipe: Recipe, limit: int | None, others: dict[str, Session]) -> Session:
    """Opened, sharing checkpoint, data and task with another row whose recipe names the same."""
    for other in others.values():
        if (other.recipe.model, other.recipe.data, other.recipe.task) == (recipe.model, recipe.data, recipe.task):
            return replace(other, recipe=recipe)
    return open_session(recipe, Silent(), limit)


def _few(session: Session, recipe: Recipe) -> Samples:
    """The rows that training is measured on."""
    data = session.data.train
    assert data is not None
    return data.subset(np.arange(min(BATCHES * recipe.train.batch_size, len(data))))


def _train(session: Session, recipe: Recipe) -> float:
    """Seconds of training on a few batches for all epochs of the recipe, on which what is computed once weighs as it does."""
    few = session.task.encode(_few(session, recipe), recipe.data.augment)
    quiet = replace(session, recipe=replace(recipe, train=replace(recipe.train, select="last")))
    ensemble = quiet.build(log_store=False)
    trainer = trainer_for(quiet, ensemble, few)
    began = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - began


def _inputs(session: Session, batch: int) -> Inputs:
    encoded: Encoded = session.split("test")[1]
    rows = np.arange(len(encoded))[:batch]
    return tensor_to(encoded.batch(rows), session.device)


def _runners(ensemble: Ensemble, inputs: Inputs) -> dict[str, Callable[[], float]]:
    """Ways to predict with all members -> a function that takes its time; merging happens before the clock starts."""

    def together() -> float:
        began = time.perf_counter()
        ensemble(inputs)
        return time.perf_counter() - began

    def one_by_one() -> float:
        total = 0.0
        for m in range(ensemble.n_members):
            with ensemble.merged(m):
                began = time.perf_counter()
                ensemble(inputs, members=[m])
                total += time.perf_counter() - began
        return total

    if ensemble.n_members == 1:  # one plain network, whatever it was trained as
        return {"one by one": one_by_one}
    return {"together": together} if ensemble.shares_features else {"together": together, "one by one": one_by_one}


def _ways(session: Session, ensemble: Ensemble, inputs: Inputs) -> dict[str, Callable[[], float]]:
    """Those of `_runners` that give the right answer on this network."""
    ways = _runners(ensemble, inputs)
    if len(ways) > 1 and mixing_layer(ensemble, session.split("test")[1], session.device):
        del ways["together"]
    return ways


def _latencies(sessions: dict[str, Session], batch: int) -> dict[str, tuple[float, float]]:
    """Row -> seconds of one prediction with all members at this batch size, and how far its measurements scatter.

    The faster way's median, rows taking turns; scatter: between the quartiles, relative to the median.
    """
    times: dict[str, dict[str, list[float]]] = {name: {} for name in sessions}
    built = {name: (session.build(log_store=False), _inputs(session, batch)) for name, session in sessions.items()}
    ways = {name: _ways(sessions[name], *found) for name, found in built.items()}
    fewest, most = REPEATS
    with torch.inference_mode():
        for turn in range(most + 1):
            for name, (ensemble, _) in built.items():
                ensemble.set_training(False)
                for way, run in ways[name].items():
                    known = times[name].setdefault(way, [])
                    if turn <= fewest or sum(known) < LATENCY_SECONDS:
                        seconds = run()
                        known += [seconds] if turn else []  # the first warms up
    return {name: min(_middle(known) for known in ways.values()) for name, ways in times.items()}


def _middle(seconds: list[float]) -> tuple[float, float]:
    lower, middle, upper = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float(middle), float((upper - lower) / middle)


def _predict_flops(session: Session) -> float:
    """FLOPs of one sample through all members as plain networks (through one where all share its features)."""
    ensemble = session.build(log_store=False)
    ensemble.set_training(False)
    inputs = _inputs(session, 8)
    size = len(next(iter(inputs.values())))
    total = 0.0
    with torch.inference_mode():
        for group in [list(range(ensemble.n_members))] if ensemble.shares_features else [[m] for m in range(ensemble.n_members)]:
            with ensemble.merged(group[0]), FlopCounterMode(display=False) as counter:
                ensemble(inputs, members=group)
            total += counter.get_total_flops()
    return total / size
