"""`sve export --to distilled`: train one network on what the ensemble says, then measure it beside the ensemble.

What the members say to the training inputs is computed once and kept with the run, and so is the training's checkpoint: the same
command goes on where it was killed, and a finished training is not repeated.
Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sve_cli import __version__, training
from sve_cli.backbone import Inputs
from sve_cli.data.load import ROLES
from sve_cli.ensemble import Ensemble, keyed_generator
from sve_cli.errors import CheckpointError, DataError, SveError
from sve_cli.export import Options
from sve_cli.export.artifact import LiveOutputs
from sve_cli.factors import FactorStore
from sve_cli.methods.distilled import Student, build_student, require_distillable
from sve_cli.metrics.dirichlet import concentrations, mean_entropy, mutual_information
from sve_cli.posthoc.state import split_validation
from sve_cli.prediction import predict_logits
from sve_cli.recipe import learning_rate
from sve_cli.recipe.spec import TrainSpec
from sve_cli.rundir import RunDir, atomic_path, file_digest
from sve_cli.samples import Samples
from sve_cli.statistics import seeded
from sve_cli.tasks.common import Encoded
from sve_cli.training.distillation import SMOOTHING, Distillation, Teacher, best_line, best_temperature, divergence
from sve_cli.workflows.distil_scores import Calibrated, compare_systems, open_single
from sve_cli.workflows.session import Session, own_data
from sve_cli.workflows.stored import run_aggregate, saved_predictions, stored_posthoc
from sve_cli.workflows.train import LoopLog, read_checkpoint

FOLDER = "distilled"
SHARE = 0.1  # of the recipe's learning rates: the student starts near its end, at the mean of trained members (docs/distil.md)


@dataclass(frozen=True)
class Distilled:
    """What the exporter gets: the trained student, what it must equal, and what its card says.

    Attributes:
        live: inputs -> logits, log_precision, entropy, mutual_information of the live student.
        facts: plain values for the certificate.
        lines: Markdown for the card.
        calibrated: temperature and average of the ensemble that it stands for.
    """

    student: Student
    live: LiveOutputs
    facts: dict[str, Any]
    lines: str
    calibrated: tuple[float, str]


@dataclass(frozen=True)
class Settings:
    """How the student is trained; the recipe's own values where nothing else is asked for."""

    epochs: int
    lr: float
    calibrated: Calibrated
    rows: int | None
    unlabelled: tuple[str, ...]


def prepare(session: Session, run: RunDir, ensemble: Ensemble, options: Options) -> Distilled:
    """Train (or go on training) the student and measure it.

    Raises:
        NotExportable: members without a meaningful mean, or one only.
        SveError: sets or runs that do not fit, a training that cannot be kept.
        DivergenceError: the loss is not finite.
    """
    recipe = session.recipe
    require_distillable(recipe.method.name, ensemble.n_members)
    settings = _settings(session, run, options)
    single = open_single(options.single, session) if options.single is not None else None
    notes = check_unlabelled(session, settings.unlabelled)
    for name in recipe.data.ood:
        session.split(name)  # whatever is wrong with it shows before the training
    with run.only_writer():
        student, facts = _train(session, run, ensemble, settings)
    table = compare_systems(session, run, ensemble, student, settings.calibrated, single, notes)
    live = live_outputs(student, session.task.modality != "multiple_choice")
    calibrated = (settings.calibrated.temperature, settings.calibrated.aggregate)
    return Distilled(student, live, {**facts, **table.facts()}, _lines(facts, table.to_markdown()), calibrated)


def live_outputs(student: Student, same_options: bool = True) -> LiveOutputs:
    """The live student as a function of the network's inputs.

    Args:
        same_options: whether every input has all classes; entropies of a question depend on the options it has.
    """

    def outputs(inputs: Inputs) -> dict[str, Tensor]:
        logits_BC, log_precision_B = student.outputs(inputs)
        found = {"logits": logits_BC, "log_precision": log_precision_B}
        if same_options:
            alpha_BC = concentrations(torch.softmax(logits_BC.double(), -1), log_precision_B)
            found |= {"entropy": mean_entropy(alpha_BC), "mutual_information": mutual_information(alpha_BC)}
        return found

    return outputs


def check_unlabelled(session: Session, names: Sequence[str]) -> list[str]:
    """Warn of unlabelled sets that the student is measured on too -> what the card says of them.

    Raises:
        SveError: a split of the run's own data.
    """
    if own := [name for name in names if name in ROLES or own_data(session.recipe, [name])]:
        raise SveError(f"--unlabelled {own[0]} names a split of the run's own data.", "Name another set, or a file.")
    notes = [
        f"'{name}' was learnt from, so that the AUROC on it says little about inputs that were not."
        for name in names
        if name in session.recipe.data.ood
    ]
    for note in notes:
        session.log.warn(note)
    return notes


def _settings(session: Session, run: RunDir, options: Options) -> Settings:
    recipe = session.recipe
    epochs = options.distil_epochs if options.distil_epochs is not None else max(recipe.train.epochs, 1)
    lr = options.distil_lr if options.distil_lr is not None else SHARE * learning_rate(recipe)
    if epochs < 1:
        raise SveError(f"--distil-epochs is {epochs}, and the student needs at least one.", "Write for example --distil-epochs 3")
    if not lr > 0:
        raise SveError(f"--distil-lr is {lr}, and a learning rate is above 0.")
    return Settings(epochs, lr, _calibrated(run), options.distil_rows, tuple(options.unlabelled))


def _calibrated(run: RunDir) -> Calibrated:
    """The temperature and the average of the run's newest evaluation; 1 where none was fitted, or it ended at a bound."""
    evaluation, how = next(iter(run.evaluations()), None), run_aggregate(run)
    return Calibrated(1.0, how) if evaluation is None else Calibrated.fitted(stored_posthoc(evaluation), how)


def _train(session: Session, run: RunDir, ensemble: Ensemble, settings: Settings) -> tuple[Student, dict[str, Any]]:
    recipe, log = session.recipe, session.log
    samples, encoded = distillation_rows(session, settings)
    origin: dict[str, Any] = {
        "trained": file_digest(run.path / "ensemble.safetensors"), "checkpoint": session.digest(), "rows": samples.fingerprint(),
        "views": len(encoded), "augment": recipe.data.augment, "seed": recipe.seed,
    }  # fmt: skip
    said_MNC = _teacher_logits(session, ensemble, encoded, run.path / FOLDER / f"teacher-{_key(origin)}.safetensors")
    selection = session.selection_half()
    judged_MNC = _on_selection(session, run, ensemble, origin["trained"])
    t, how = settings.calibrated.temperature, settings.calibrated.aggregate
    # A sharp temperature hides from the targets what the members know of other classes; the head takes it over afterwards.
    learnt_at = 1.0 if ensemble.heads.trainable else t
    objective = Distillation(
        Teacher(said_MNC, encoded.mask_NC, learnt_at, how), Teacher(judged_MNC, selection.mask_NC, learnt_at, how), session.device
    )
    student = build_student(ensemble, session.backbone, recipe.method, FactorStore(), recipe.seed)
    session.to_device(student.ensemble)
    share, bias_lr = settings.lr / learning_rate(recipe), recipe.train.bias_lr
    student.slow_heads(share)
    spec = replace(
        recipe.train,
        epochs=settings.epochs,
        bias_lr=None if bias_lr is None else share * bias_lr,
        select="validation_nll",  # here: the best epoch by its KL
    )
    made_with = {
        **origin,
        "lr": settings.lr,
        "head_share": share,
        "temperature": learnt_at,
        "aggregate": how,
        "train": repr(spec),
        "version": __version__,
        "loss": "cross-entropy",
    }
    checkpoint = run.path / FOLDER / f"training-{_key(made_with)}.safetensors"
    history = _fit(session, student, encoded, selection, objective, spec, settings.lr, checkpoint)
    found = _calibrate(session, student, selection, Teacher(judged_MNC, selection.mask_NC, t, how))
    log.say(f"Distilled: {_in_words(history)}")
    facts = {
        "epochs": settings.epochs, "lr": settings.lr, "head_lr": share * spec.head_lr, "aggregate": how, **found,
        "rows": len(samples), "views": len(encoded), "unlabelled": list(settings.unlabelled), "smoothing": SMOOTHING,
        "selected": history,
    }  # fmt: skip
    return student, {"distillation": facts}


def _calibrate(session: Session, student: Student, selection: Encoded, teacher: Teacher) -> dict[str, float]:
    """Bring the trained student's confidence and precision to the calibrated ensemble's on the selection half -> what was found."""
    outputs_NC = session.outputs(student.ensemble, selection, "The distilled network on the selection half")[0][0]
    logits_NC = torch.from_numpy(outputs_NC[:, :-1])
    own = best_temperature(teacher, logits_NC) if student.ensemble.heads.trainable else 1.0
    weight, bias = best_line(teacher, logits_NC / own, session.recipe.seed)
    student.calibrate(own, (weight, bias))
    kl = divergence(teacher, logits_NC / own)
    return {"temperature": teacher.temperature, "own_temperature": own, "calibrated_kl": kl, "weight": weight, "bias": bias}


def _fit(
    session: Session,
    student: Student,
    rows: Encoded,
    selection: Encoded,
    objective: Distillation,
    spec: TrainSpec,
    lr: float,
    path: Path,
) -> dict[str, Any]:
    """The one loop with the distillation's loss -> what the best epoch's record says."""
    network, batch, log = student.ensemble, session.recipe.evaluate.batch_size, session.log
    loaded = read_checkpoint(path) if path.is_file() else None

    def save(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})

    def validate(members: Sequence[int]) -> np.ndarray:
        return predict_logits(network, selection, batch, members, session.device)[0]

    def features() -> np.ndarray:
        found = predict_logits(network, rows, batch, [0], session.device, keep_features=True)[1]
        assert found is not None
        return found[0]

    steps = training.round_steps(spec, network.rounds()[0], -(-len(rows) // spec.batch_size))
    with log.progress(steps, "Distilling") as advance:
        start = 0 if loaded is None else int(loaded[1]["done_steps"])
        if start:
            log.say(f"Going on at step {start} of {steps}.")
            advance(start)
        trainer = training.Trainer(
            network, rows, selection, validate, spec, lr, session.recipe.seed, DistilLog(None, log, advance, start),
            training.Checkpointer(save, loaded), features if network.shares_features else None, objective,
        )  # fmt: skip
        return trainer.fit().best[0]


class DistilLog(LoopLog):
    """The loop's log: progress and one line an epoch."""

    def epoch(self, record: dict[str, Any]) -> None:
        self.log.say(
            f"epoch {record['epoch']}, KL to the ensemble {record['validation_kl']:.4f}, "
            f"agreement {100 * record['validation_agreement']:.2f} % ({record['seconds']:.0f} s)"
        )


def distillation_rows(session: Session, settings: Settings) -> tuple[Samples, Encoded]:
    """The training inputs and the unlabelled ones, encoded; where the run augments, one keyed draw of each besides.

    Raises:
        DataError: an unlabelled set of another kind.
    """
    samples = session.data.train
    if samples is None:
        raise DataError("The train split was not loaded.")
    if settings.rows is not None and settings.rows < len(samples):
        chosen = seeded(session.recipe.seed, "distillation rows").choice(len(samples), settings.rows, replace=False)
        samples = samples.subset(np.sort(chosen))
    parts = [samples, *(session.split(name)[0] for name in settings.unlabelled)]
    if len(parts) > 1:
        names = [n for n in samples.inputs if all(n in p.inputs for p in parts)]
        samples = replace(
            samples,
            inputs={n: [x for p in parts for x in p.inputs[n]] for n in names},
            labels_N=np.concatenate([p.labels_N for p in parts]),
            ids_N=[f"{i}-{name}" for i, p in enumerate(parts) for name in p.ids_N],
            columns={},
            soft_labels_NC=None,
        )
    augment = session.recipe.data.augment
    encoded = session.task.encode(samples, augment)
    return samples, KeyedDraws(encoded, session.recipe.seed) if encoded.augments else encoded


class KeyedDraws(Encoded):
    """A set as it is, followed by one draw of its augmentation, the same whenever it is asked for."""

    def __init__(self, base: Encoded, seed: int) -> None:
        self.base, self.seed = base, seed
        self.labels_N = np.concatenate([base.labels_N] * 2)
        self.lengths_N = None if base.lengths_N is None else np.concatenate([base.lengths_N] * 2)
        self.mask_NC = None if base.mask_NC is None else np.concatenate([base.mask_NC] * 2)

    def batch(self, rows_B: np.ndarray, generator: torch.Generator | None = None) -> Inputs:
        found = [self._one(int(row)) for row in rows_B]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _one(self, row: int) -> Inputs:
        n = len(self.base)
        return self.base.batch(np.array([row % n]), keyed_generator(self.seed, "distillation", row) if row >= n else None)


def _teacher_logits(session: Session, ensemble: Ensemble, encoded: Encoded, path: Path) -> np.ndarray:
    """The members' logits (M, N, C), from the file of an earlier distillation where it is whole."""
    shape = (ensemble.n_members, len(encoded), len(ensemble.classes))
    if path.is_file():
        try:
            with safe_open(path, framework="numpy") as file:
                kept: np.ndarray = file.get_tensor("logits")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Cannot read '{path}' ({error}).", "Remove it; it is computed again.") from error
        if kept.shape == shape and np.isfinite(kept).all():
            return kept
    logits_MNC = session.outputs(ensemble, encoded, "What the members say to the training inputs")[0]
    with atomic_path(path) as temporary:
        save_file({"logits": torch.from_numpy(logits_MNC)}, temporary)
    return logits_MNC


def _on_selection(session: Session, run: RunDir, ensemble: Ensemble, digest: str) -> np.ndarray:
    """The members' logits (M, N, C) on the selection half of validation; those of the run's evaluation where they are kept."""
    kept = saved_predictions(run, "validation", digest)
    validation = session.data.validation
    if kept is None or validation is None or kept.ids_N != list(validation.ids_N):  # a limited evaluation has other rows
        return session.outputs(ensemble, session.selection_half(), "What the members say to the selection half")[0]
    return kept.logits_MNC[:, split_validation(kept.n_samples, session.recipe.seed)[0]]


def _key(origin: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]


def _in_words(best: dict[str, Any]) -> str:
    return f"epoch {best['epoch']} is kept, KL to the ensemble {best['validation_kl']:.4f} nats on the selection half."


def _lines(facts: dict[str, Any], table: str) -> str:
    found = facts["distillation"]
    extra = f", {', '.join(found['unlabelled'])} without labels among them" if found["unlabelled"] else ""
    return (
        f"Trained for {found['epochs']} epochs on the members' answers to {found['rows']} inputs{extra}, learning rate "
        f"{found['lr']:g} (heads {found['head_lr']:g}), from the mean of the members; {_in_words(found['selected'])} "
        f"Then its logits were divided by {found['own_temperature']:.4g}, where it is nearest to the ensemble at the temperature "
        f"{found['temperature']:.4g} on that half (KL {found['calibrated_kl']:.4f} nats).\n\n{table}"
    )
