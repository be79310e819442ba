"""`sve train`: recipe -> trained run with its first evaluation."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sve_cli import training
from sve_cli.backbone import identity, require_same
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.prediction import predict_logits
from sve_cli.recipe import LoadedRecipe, Recipe, digest, learning_rate, to_yaml
from sve_cli.report import Report
from sve_cli.rundir import RunDir, atomic_path, how_to_finish, read_json, runs_root, seal, write_json, write_text
from sve_cli.tasks.common import Encoded
from sve_cli.workflows.evaluate import evaluate_session
from sve_cli.workflows.session import Log, Session, Silent, environment, increments, open_session, trained_state

LATEST = "latest.safetensors"
TRAINED = "training.json"  # there once the training is over


@dataclass(frozen=True)
class Plan:
    """What a run would do, without doing it (`--dry-run`)."""

    targets: list[tuple[str, int, int]]
    trained: dict[str, int]
    base_parameters: int
    rows: dict[str, int]
    steps: int
    notes: list[str]


def plan_run(loaded: LoadedRecipe, log: Log, limit: int | None = None, out: Path | None = None, overwrite: bool = False) -> Plan:
    """All the validation a run does: opens checkpoint and data, encodes, builds the ensemble, computes one training step.

    Raises:
        SveError: whatever would stop the run.
    """
    require_place(out, overwrite)
    session = open_session(loaded.recipe, log, limit)
    lock_of(session, limit)  # reads every input
    open_sets(session)
    ensemble = session.build()
    trainer = _trainer(session, ensemble, log, lambda n, t: None, training.Checkpointer(lambda tensors, meta: None))
    trainer.dry_step()
    trainer.frozen_prefix(fill=False)
    shapes = [(view.name, view.weight_OI.shape) for view in ensemble.target_views()]
    targets = [(name, int(shape[0]), int(shape[1])) for name, shape in shapes]
    rows = {n: len(s) for n in ("train", "validation", "test") if (s := getattr(session.data, n)) is not None}
    notes = [*session.data.notes, *session.task.notes]
    return Plan(targets, ensemble.parameter_table(), session.backbone.parameter_count(), rows, trainer.total_steps, notes)


def train_only(
    loaded: LoadedRecipe, log: Log, out: Path, *, resume: RunDir | None = None, limit: int | None = None, command: str = ""
) -> tuple[float, float]:
    """Train a recipe and stop before its evaluation: one point of a search.

    Returns the NLL of the members' mean probability on the selection half of the validation split, and the seconds of training.
    `train` with `resume` evaluates and finishes the run.

    Raises:
        DivergenceError: the loss is not finite.
        SveError: as `train`.
    """
    with _begun(loaded, log, out, resume, limit, True, command) as (session, ensemble, run):
        _trained(session, ensemble, run, log, command)
        rows = session.selection_half()
        logits_MNC = _validator(session, ensemble, rows)(range(ensemble.n_members))
        mask_NC = None if rows.mask_NC is None else torch.from_numpy(rows.mask_NC)
        nll = training.mean_nll(torch.from_numpy(logits_MNC), torch.from_numpy(rows.labels_N), mask_NC)
        return nll, float(read_json(run.path / TRAINED)["seconds"])


def train(
    loaded: LoadedRecipe,
    log: Log,
    *,
    out: Path | None = None,
    resume: RunDir | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    command: str = "",
) -> tuple[RunDir, Report]:
    """Train a recipe and evaluate it. With `resume`, go on with an unfinished run: same result to the bit.

    Raises:
        SveError: bad recipe, data or checkpoint; divergence; a run that cannot be resumed.
    """
    with _begun(loaded, log, out, resume, limit, overwrite, command) as (session, ensemble, run):
        _trained(session, ensemble, run, log, command)
        return run, finish(session, ensemble, run, command)


@contextmanager
def _begun(
    loaded: LoadedRecipe, log: Log, out: Path | None, resume: RunDir | None, limit: int | None, overwrite: bool, command: str
) -> Iterator[tuple[Session, Ensemble, RunDir]]:
    """Everything opened and checked, the untrained ensemble, and the run's folder, held until the block ends."""
    recipe = loaded.recipe
    if resume is not None:
        limit = _resumable(resume)["limit"]
    else:
        require_place(out, overwrite)
    session = open_session(recipe, log, limit)
    lock = lock_of(session, limit)
    if resume is not None:
        _check_lock(resume, lock, log)
        require_same(session.backbone, read_json(resume.path / "recipe.lock.json"), "this run")
    open_sets(session)
    ensemble = session.build()
    if resume is None and recipe.train.prefix_cache_mb:  # what cannot be kept is refused before the folder is made
        trainer_for(session, ensemble, session.split("train")[1]).frozen_prefix(fill=False)
    name, exact = loaded.name, out is not None
    held = RunDir.begin(out or runs_root(), name, digest(recipe), exact, overwrite) if resume is None else resume.only_writer()
    with held as run:
        if resume is None:
            write_json(run.path / "recipe.lock.json", {**lock, "command": command})
            write_text(run.path / "recipe.yaml", to_yaml(recipe))  # what makes it a run: last
        log.say(f"Run: {run.path}")
        yield session, ensemble, run


def _trained(session: Session, ensemble: Ensemble, run: RunDir, log: Log, command: str) -> None:
    """Train to the end and store what was trained; a run that got there before is only read."""
    if (run.path / TRAINED).is_file():
        log.say("The training was finished before.")
        ensemble.load_trained(trained_state(run))
    else:
        keep(session, ensemble, run, _fit(session, ensemble, run, log), command)
    for leftover in run.path.glob("checkpoints/*"):  # only now: a kill before may need them
        leftover.unlink()


def keep(session: Session, ensemble: Ensemble, run: RunDir, fit: training.Fit, command: str) -> None:
    """Store the trained ensemble and the facts of its training, which are written last."""
    _write_ensemble(run, ensemble, session.recipe)
    speed = _speed(session, fit)
    facts = {
        "seconds": round(fit.seconds, 1), **speed, "samples_per_second": round(fit.samples_per_second, 1), "steps": fit.steps,
        "best": fit.best, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "command": command,
    }  # fmt: skip
    write_json(run.path / TRAINED, facts)


def finish(session: Session, ensemble: Ensemble, run: RunDir, command: str) -> Report:
    """What follows the training: evaluate the ensemble and seal the run."""
    recipe = session.recipe
    report = evaluate_session(session, run, ensemble, list(recipe.data.ood), recipe.evaluate, command, training_gap=True)
    seal(run.path, ["recipe.yaml", "recipe.lock.json", "ensemble.safetensors", "history.jsonl", TRAINED])
    for leftover in run.path.glob(".*.tmp*"):
        leftover.unlink()
    return report


def _speed(session: Session, fit: training.Fit) -> dict[str, Any]:
    """In what precision the steps ran and how fast, said and returned; {} where none ran or only heads trained."""
    if fit.dtype is None or not fit.steps:
        return {}
    name = training.precision_name(fit.dtype)
    if (share := fit.meter.utilisation(session.device, fit.dtype)) is None:  # too few steps
        return {"precision": name}
    # Above 1 the peak was measured beside other work, and says nothing.
    used = f"; its products use {share:.0%} of the peak that one large product reaches here." if share <= 1.0 else "."
    session.log.say(f"Training in {name}: {fit.meter.per_second:,.0f} {fit.meter.unit} a second, all members together{used}")
    rate = {f"{fit.meter.unit}_per_second": round(fit.meter.per_second, 1)}
    return {"precision": name, **rate, "model_flops_utilisation": round(share, 3)}


def require_place(out: Path | None, overwrite: bool) -> None:
    """Refuse an unusable --out before any work."""
    if out is not None:
        RunDir.require_free(out, overwrite)


def open_sets(session: Session) -> None:
    """Open everything that is needed only after the training, so that it is refused or warned about before."""
    session.split("test")
    session.check_ood(session.recipe.data.ood)


def _fit(session: Session, ensemble: Ensemble, run: RunDir, log: Log) -> training.Fit:
    checkpoint = run.path / "checkpoints" / LATEST
    loaded = read_checkpoint(checkpoint) if checkpoint.is_file() else None
    start = loaded[1]["done_steps"] if loaded else 0
    if loaded:
        log.say(f"Going on at step {start}.")
        kept = [h for h in run.history() if h["step"] <= start]
        write_text(run.history_path, "".join(json.dumps(h) + "\n" for h in kept))
    else:
        write_text(run.history_path, "")

    def save(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        with atomic_path(checkpoint) as temporary:
            save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})

    total = total_steps(session, ensemble)
    with log.progress(total, "Training") as advance:
        advance(start)
        loop_log = LoopLog(run, log, advance, start)
        trainer = _trainer(session, ensemble, log, advance, training.Checkpointer(save, loaded), loop_log)
        return trainer.fit()


def total_steps(session: Session, ensemble: Ensemble) -> int:
    """Optimiser steps of all rounds."""
    assert session.data.train is not None
    batches = -(-len(session.data.train) // session.recipe.train.batch_size)
    return sum(training.round_steps(session.recipe.train, r, batches) for r in ensemble.rounds())


def _trainer(
    session: Session,
    ensemble: Ensemble,
    log: Log,
    advance: Callable[[int, str], None],
    checkpointer: training.Checkpointer,
    loop_log: training.Log | None = None,
) -> training.Trainer:
    recipe = session.recipe
    _, train_split = session.split("train")
    validation = session.selection_half()
    if train_split.n_shortened:
        log.say(f"{train_split.n_shortened} of {len(train_split)} training inputs are shortened to the longest length.")

    watcher = loop_log or LoopLog(None, log, advance, 0)
    return training.Trainer(
        ensemble,
        train_split,
        validation,
        _validator(session, ensemble, validation),
        recipe.train,
        learning_rate(recipe),
        recipe.seed,
        watcher,
        checkpointer,
        _frozen_features(session, ensemble, train_split),
    )


def _features(session: Session, ensemble: Ensemble, rows: Encoded) -> np.ndarray:
    """The features (N, F) of an ensemble whose members share them."""
    batch = session.recipe.evaluate.batch_size
    found = predict_logits(ensemble, rows, batch, [0], session.device, keep_features=True)[1]
    assert found is not None
    return found[0]


def _frozen_features(session: Session, ensemble: Ensemble, rows: Encoded) -> Callable[[], np.ndarray] | None:
    """What computes the features once where nothing before the heads changes; None: every step passes the network."""
    frozen = ensemble.shares_features and not rows.augments
    return (lambda: _features(session, ensemble, rows)) if frozen else None


def _validator(session: Session, ensemble: Ensemble, rows: Encoded) -> training.Validate:
    """Members -> their logits (M, N, C) on the selection half; features that never change are computed once."""
    batch = session.recipe.evaluate.batch_size
    if not ensemble.shares_features:
        return lambda members: predict_logits(ensemble, rows, batch, members, session.device)[0]
    kept: list[Tensor] = []

    def from_features(members: Sequence[int]) -> np.ndarray:
        if not kept:
            kept.append(torch.from_numpy(_features(session, ensemble, rows)).to(session.device))
        with torch.inference_mode():
            return ensemble.heads(kept[0].expand(len(members), -1, -1), members).cpu().numpy()

    return from_features


def trainer_for(session: Session, ensemble: Ensemble, rows: Encoded) -> training.Trainer:
    """The loop over these rows as `train` would run it, without validation, checkpoints or log: what costs are measured on."""
    recipe = session.recipe
    watcher = LoopLog(None, Silent(), lambda n, t: None, 0)
    nothing = training.Checkpointer(lambda tensors, meta: None)
    features = _frozen_features(session, ensemble, rows)
    lr = learning_rate(recipe)
    return training.Trainer(ensemble, rows, None, lambda m: np.zeros(0), recipe.train, lr, recipe.seed, watcher, nothing, features)


class LoopLog:
    """The loop's log: progress to the console, epochs to history.jsonl."""

    def __init__(self, run: RunDir | None, log: Log, advance: Callable[..., None], start: int) -> None:
        self.run, self.log, self.onward = run, log, increments(advance, start)

    def step(self, done: int, total: int, text: str) -> None:
        self.onward(done, text)

    def epoch(self, record: dict[str, Any]) -> None:
        if self.run is not None:
            with self.run.history_path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(record) + "\n")
        where = f"round {record['round'] + 1} of {record['rounds']}, " if record["rounds"] > 1 else ""
        parts = [f"{where}epoch {record['epoch']}", f"train loss {record['train_loss']:.4f}"]
        if record["validation_nll"] is not None:
            parts += [f"validation NLL {record['validation_nll']:.4f}", f"accuracy {100 * record['validation_accuracy']:.2f} %"]
            parts += [f"disagreement {100 * record['disagreement']:.2f} %"]
        self.log.say(", ".join(parts) + f" ({record['seconds']:.0f} s)")

    def warn(self, text: str) -> None:
        self.log.warn(text)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the loop saved: tensors and facts.

    Raises:
        SveError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as f:
            meta = json.loads(f.metadata()["meta"])
            return {name: f.get_tensor(name) for name in f.keys()}, meta  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise SveError(f"Cannot read the checkpoint '{path}' ({error}).", "Remove it to train again from the start.") from error


def _write_ensemble(run: RunDir, ensemble: Ensemble, recipe: Recipe) -> None:
    state = {n: t.cpu() for n, t in ensemble.state().items()}
    meta = {"format": "sve-ensemble/1", "method": recipe.method.name, "classes": ensemble.classes}
    with atomic_path(run.path / "ensemble.safetensors") as temporary:
        save_file(state, temporary, metadata={"meta": json.dumps(meta)})  # safetensors writes several keys in random order


def _resumable(run: RunDir) -> dict[str, Any]:
    lock: dict[str, Any] = read_json(run.path / "recipe.lock.json")
    if "transferred_from" in lock:
        raise SveError(f"'{run.path}' is an unfinished transfer, which cannot be resumed.", how_to_finish(run.path))
    return lock


def lock_of(session: Session, limit: int | None) -> dict[str, Any]:
    """What the run was made from: digests of recipe, checkpoint and data, notes, environment."""
    splits = {n: s.fingerprint() for n in ("train", "validation", "test") if (s := getattr(session.data, n)) is not None}
    return {
        "recipe": digest(session.recipe), "checkpoint": session.digest(), "data": splits, "limit": limit,
        **identity(session.backbone),
        "notes": [*session.data.notes, *session.backbone.notes, *session.task.notes], "environment": environment(),
    }  # fmt: skip


def _check_lock(run: RunDir, lock: dict[str, Any], log: Log) -> None:
    old = read_json(run.path / "recipe.lock.json")
    for key in ("recipe", "checkpoint", "data"):
        if old.get(key) != lock[key]:
            raise SveError(f"'{run.path}' cannot be resumed: its {key} is not the same any more.", "Start a new run.")
    changed = [k for k, v in lock["environment"].items() if old["environment"].get(k) != v]
    if changed:
        log.warn(f"Resumed with another {', '.join(changed)}: the result may differ in its last bits.")
