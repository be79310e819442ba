"""`sve transfer`: what a run trained on one data set, frozen, with new heads trained on another.

The new run is a run like any other: its `ensemble.safetensors` holds everything, the transferred state too, so that
evaluating, comparing and exporting need the old run no more. `recipe.lock.json` says where the state came from
(`transferred_from`), and `sve transfer OLD NEW/recipe.yaml` with the `--limit` named there makes the same run again.
Shapes: M members, B batch, N samples, C classes, F features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sve_cli import training
from sve_cli.backbone import Inputs, require_same
from sve_cli.ensemble import Ensemble, Output, Round
from sve_cli.errors import CheckpointError, SveError
from sve_cli.prediction import predict_logits
from sve_cli.recipe import LoadedRecipe, Recipe, digest, to_yaml
from sve_cli.registry import TASKS
from sve_cli.report import Report
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json, runs_root, write_json, write_text
from sve_cli.tasks.common import Encoded
from sve_cli.workflows.session import Log, Session, open_session, run_recipe, trained_state
from sve_cli.workflows.train import LoopLog, finish, keep, lock_of, open_sets, require_place, total_steps

HEADS = "heads."


class HeadsOfFrozen(Ensemble):
    """A trained ensemble of which only the heads train: all members in one round, whatever rounds the method trained in.

    Where the members share one head (MC dropout), it trains as that method trains: through the network, thinned at random.
    """

    def __init__(self, whole: Ensemble) -> None:
        self.one_head = len(whole.heads.weight_MCF) < whole.n_members
        super().__init__(
            whole.backbone, whole.network, whole.heads, whole.classes, whole.context,
            member_batches=whole.member_batches, dropout=whole.dropout and self.one_head,
        )  # fmt: skip
        self.whole = whole
        self.shares_features = whole.shares_features
        for name, parameter in whole.trainable().items():
            parameter.requires_grad_(name.startswith(HEADS))

    def forward(self, inputs: Inputs, members: Sequence[int] | None = None, per_member: bool = False) -> Output:
        output: Output = self.whole(inputs, members, per_member)
        return output

    def set_training(self, training: bool) -> None:
        (self.whole.set_training if self.one_head else super().set_training)(training)

    def rounds(self) -> list[Round]:
        return self.whole.rounds() if self.one_head else super().rounds()


def transfer(
    source: RunDir,
    loaded: LoadedRecipe,
    log: Log,
    *,
    out: Path | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    most_members: bool = False,
    command: str = "",
) -> tuple[RunDir, Report]:
    """Refit a run's heads on the data and task of another recipe, and evaluate there -> the new run and its report.

    Of the recipe's method section only `members` counts (the first of the run's members are taken); of its train section
    what concerns heads. `most_members`: where the recipe has more members than the run, take all the run has.

    Raises:
        SveError: an unfinished or changed run; a recipe with another checkpoint or pooling, more members than the run has, or
            a frozen head; whatever stops `sve train`.
    """
    require_place(out, overwrite)
    if out is not None and out.resolve() == source.path.resolve():
        raise SveError(f"'{out}' is the run that is transferred.", "Choose another folder with --out.")
    check_seal(source.path)
    origin = run_recipe(source)
    recipe = transferred_recipe(origin, loaded.recipe, most_members)
    session = open_session(recipe, log, limit)
    origin_lock = read_json(source.path / "recipe.lock.json")
    if session.digest() != origin_lock["checkpoint"]:
        raise CheckpointError(
            f"'{recipe.model.name}' is not the checkpoint that '{source.path}' was trained on ('{origin.model.name}').",
            "What was trained only fits its own checkpoint: name that one under model.name.",
        )
    require_same(session.backbone, origin_lock, f"'{source.path}'")
    lock = lock_of(session, limit)
    open_sets(session)
    ensemble = session.build()
    if not ensemble.heads.trainable:
        raise SveError("The task's head is frozen, so that there is nothing to refit.", "Write task.head: new.")
    load_all_but_heads(ensemble, trained_state(source), origin.method.members)
    name, exact = f"{loaded.name}-transfer", out is not None
    with RunDir.begin(out or runs_root(), name, digest(recipe), exact, overwrite) as run:
        write_json(run.path / "recipe.lock.json", {**lock, **_origin(source, origin, recipe, lock), "command": command})
        write_text(run.path / "recipe.yaml", to_yaml(recipe))  # what makes it a run: last
        log.say(f"Run: {run.path}")
        keep(session, ensemble, run, fit_heads(session, HeadsOfFrozen(ensemble), run, log), command)
        return run, finish(session, ensemble, run, command)


def transferred_recipe(origin: Recipe, wanted: Recipe, most_members: bool = False) -> Recipe:
    """The new run's recipe: the wanted one with the method of the old run and the number of members wanted.

    `most_members`: all of the old run's where more are wanted.

    Raises:
        SveError: inputs of another kind, more members than the old run has, or features that are pooled in another way.
    """
    images = [TASKS.resolve(r.task.name).modality == "image" for r in (origin, wanted)]
    if images[0] != images[1]:
        raise SveError(
            f"The run is for {origin.task.name}, but the recipe for {wanted.task.name}: their checkpoints cannot be the same.",
            f"Name a recipe whose checkpoint is '{origin.model.name}'.",
        )
    members = min(wanted.method.members, origin.method.members) if most_members else wanted.method.members
    if members > origin.method.members:
        raise SveError(
            f"The recipe asks for {members} members, but the run has {origin.method.members}.",
            f"Add method.members={origin.method.members} to the command.",
        )
    pooling = [{"auto": "native"}.get(r.model.pooling, r.model.pooling) for r in (origin, wanted)]
    if pooling[0] != pooling[1]:
        raise SveError(
            f"The run was trained with model.pooling '{pooling[0]}', but the recipe pools by '{pooling[1]}'.",
            f"Add model.pooling={pooling[0]} to the command.",
        )
    return replace(wanted, method=replace(origin.method, members=members))


def load_all_but_heads(ensemble: Ensemble, trained: Mapping[str, Tensor], n_trained: int) -> None:
    """Put a trained state of `n_trained` members in place, of which the ensemble may have the first few; heads stay.

    Raises:
        CheckpointError: it is the state of another method, setting or checkpoint.
    """
    own = ensemble.state()
    stacked = {n for g in ensemble.groups if g.stacked for n in g.parameters} | ensemble.kept.keys()
    body = {name: tensor for name, tensor in trained.items() if not name.startswith(HEADS)}
    if ensemble.n_members < n_trained:  # whole networks of the members left out have names of their own
        kept = {name: tensor for name, tensor in body.items() if name in own}
        body = {name: t[: ensemble.n_members] if name in stacked else t for name, t in kept.items()}
    ensemble.load_trained({**{n: t for n, t in own.items() if n.startswith(HEADS)}, **body})


def _origin(source: RunDir, origin: Recipe, recipe: Recipe, lock: Mapping[str, Any]) -> dict[str, Any]:
    """What the lock says of where the state came from; the note is shown in every report."""
    some = recipe.method.members < origin.method.members
    who = f"the first {recipe.method.members} of {origin.method.members} members" if some else "all members"
    note = (
        f"Transferred: {who} of a run of {origin.method.name} on {origin.data.name} are frozen as they were; only the heads were "
        "trained here."
    )
    return {
        "notes": [*lock["notes"], note],
        "transferred_from": {
            "run": str(source.path.resolve()),
            "recipe": digest(origin),
            "trained": file_digest(source.path / "ensemble.safetensors"),
            "data": origin.data.name,
            "members": recipe.method.members,
        },
    }


def fit_heads(session: Session, ensemble: HeadsOfFrozen, run: RunDir, log: Log) -> training.Fit:
    """Train the heads with the one loop. Features are computed once where no augmentation or shared head forbids it."""
    recipe = session.recipe
    _, train_split = session.split("train")
    selection = session.selection_half()
    began = time.monotonic()
    fixed_MNF: np.ndarray | None = None
    validate = _through_network(session, ensemble, selection)
    if not (train_split.augments or ensemble.one_head):
        fixed_MNF = _features(session, ensemble, train_split, "Training features of every member")
        validate = _through_heads(ensemble, _features(session, ensemble, selection, "Validation features of every member"))
    before = time.monotonic() - began
    write_text(run.history_path, "")
    with log.progress(total_steps(session, ensemble), "Training heads") as advance:
        trainer = training.Trainer(
            ensemble,
            train_split,
            selection,
            validate,
            recipe.train,
            recipe.train.head_lr,
            recipe.seed,
            LoopLog(run, log, advance, 0),
            training.Checkpointer(lambda tensors, meta: None),
            None if fixed_MNF is None else lambda: fixed_MNF,
        )
        fit = trainer.fit()
    return replace(fit, seconds=fit.seconds + before)


def _features(session: Session, ensemble: Ensemble, encoded: Encoded, text: str) -> np.ndarray:
    """Features (M, N, F) of every member; (1, N, F) where they are the same."""
    _, features_MNF = session.outputs(ensemble, encoded, text, keep_features=True)
    assert features_MNF is not None
    return features_MNF[:1] if ensemble.shares_features else features_MNF


def _through_heads(ensemble: Ensemble, features_MNF: np.ndarray) -> Callable[[Sequence[int]], np.ndarray]:
    fixed_MNF = torch.from_numpy(features_MNF).to(ensemble.heads.weight_MCF.device)

    def validate(members: Sequence[int]) -> np.ndarray:
        own_MNF = fixed_MNF[list(members)] if len(fixed_MNF) > 1 else fixed_MNF.expand(len(members), -1, -1)
        with torch.inference_mode():
            logits_MNC: np.ndarray = ensemble.heads(own_MNF, members).cpu().numpy()
        return logits_MNC

    return validate


def _through_network(session: Session, ensemble: Ensemble, encoded: Encoded) -> Callable[[Sequence[int]], np.ndarray]:
    def validate(members: Sequence[int]) -> np.ndarray:
        return predict_logits(ensemble, encoded, session.recipe.evaluate.batch_size, members, session.device)[0]

    return validate
