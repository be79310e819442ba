"""What every workflow starts from: recipe -> backbone, data, task, untrained ensemble; and the log they talk to."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sve_cli import __version__
from sve_cli.backbone import Backbone, load_backbone, looks_random, require_same
from sve_cli.data.load import ROLES, limited, load_data, load_samples
from sve_cli.data.sources import local_splits, local_state, place_of, require_apart, stored_files
from sve_cli.ensemble import Ensemble, MemberContext, MemberHeads
from sve_cli.errors import CheckpointError, DataError, SveError
from sve_cli.factors import FactorStore
from sve_cli.methods.idle import idle_choices, idle_settings
from sve_cli.methods.matrix import MatrixLinear
from sve_cli.ood.training_features import TrainingFeatures, rows_kept
from sve_cli.posthoc.state import split_validation
from sve_cli.prediction import as_predictions, predict_logits
from sve_cli.predictions import Predictions
from sve_cli.recipe import MethodSpec, Recipe, load_recipe
from sve_cli.registry import METHODS, TASKS
from sve_cli.rundir import RunDir, read_json
from sve_cli.samples import DataSet, Samples
from sve_cli.statistics import seeded
from sve_cli.tasks.common import Encoded, Task

MODALITY = {"text_classification": "text", "image_classification": "image", "multiple_choice": "multiple_choice"}


class Log(Protocol):
    """Where workflows talk to; the console is one, `Silent` another."""

    def say(self, text: str) -> None:
        """A line for a person."""

    def warn(self, text: str) -> None:
        """A warning."""

    def progress(self, total: int, description: str) -> AbstractContextManager[Callable[..., None]]:
        """Progress of long work; yields `advance(n, text)`."""


def default_device() -> torch.device:
    """Where networks run unless told otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Silent:
    """A log that keeps what it was told and shows nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Callable[..., None]]:
        """No progress."""
        yield lambda n=1, text="": None


def increments(advance: Callable[..., None], seen: int = 0) -> Callable[..., None]:
    """`advance`, which takes what was done since, as a function of all that is done."""

    def to(done: int, *text: str) -> None:
        nonlocal seen
        advance(done - seen, *text)
        seen = done

    return to


@dataclass
class Session:
    """A recipe with everything it names opened."""

    recipe: Recipe
    backbone: Backbone
    data: DataSet
    task: Task
    log: Log
    limit: int | None = None
    device: torch.device = field(default_factory=default_device)
    encoded: dict[str, Encoded] = field(default_factory=dict)
    cache: dict[str, str] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Samples, Encoded]:
        """A split of the recipe's data with its encoding (train, validation, test), or another set by name.

        Raises:
            DataError: there is no such split or set, or it is of another kind.
        """
        if name in ("train", "validation", "test"):
            samples = getattr(self.data, name)
            if samples is None:
                raise DataError(f"The {name} split was not loaded.")
        else:
            samples = load_samples(name, self.recipe.data, self.task.modality, labels=False)
            if self.limit is not None:
                samples = limited(samples, self.limit, self.recipe.seed if self.recipe.data.seed is None else self.recipe.data.seed)
            # Labels of another set mean nothing here: they only say how a limited draw is spread.
            samples = replace(samples, labels_N=samples.labels_N * 0 - 1)
        if name not in self.encoded:
            augment = self.recipe.data.augment if name == "train" else "none"
            self.encoded[name] = self.task.encode(samples, augment)
        return samples, self.encoded[name]

    def check_ood(self, names: Sequence[str]) -> None:
        """Open out-of-distribution sets, and warn where one is the data of the run itself.

        Raises:
            DataError: a set that does not exist, is empty, or is of another kind, or one set written in two ways.
        """
        require_apart(names)
        for warning in ood_warnings(self.recipe, names):
            self.log.warn(warning)
        for name in names:
            try:
                samples, _ = self.split(name)
            except DataError as error:
                where = "data.ood" if name in self.recipe.data.ood else "The out-of-distribution sets"
                raise DataError(f"{where}: {error.message}", error.hint) from error
            if len(samples) == 0:
                raise DataError(f"The OOD set '{name}' is empty.", "Choose another split.")

    def selection_half(self) -> Encoded:
        """The half of the validation split that epochs are selected on; the other half stays untouched for calibration."""
        if "selection" not in self.encoded:
            validation = self.data.validation
            if validation is None:
                raise DataError("The validation split was not loaded.")
            rows, _ = split_validation(len(validation), self.recipe.seed)
            self.encoded["selection"] = self.task.encode(validation.subset(rows))
        return self.encoded["selection"]

    def digest(self) -> str:
        """The checkpoint's content hash."""
        if "backbone" not in self.cache:
            self.cache["backbone"] = self.backbone.digest()
        return self.cache["backbone"]

    def build(self, log_store: bool = True) -> Ensemble:
        """The untrained ensemble, on the session's device."""
        spec = self.recipe.method
        method = METHODS.resolve(spec.name)
        store = FactorStore()
        params = method.Params(**spec.params)
        ensemble: Ensemble = method.build(self.backbone, self.task, spec, store, params, self.recipe.seed)
        if log_store and store.hits + store.computed:
            self.log.say(f"Factors: {store.hits} from the store, {store.computed} decomposed ({store.folder}).")
        unused = [key for key in ("targets", "exclude", "last_blocks") if getattr(spec, key) != getattr(MethodSpec(spec.name), key)]
        if log_store and unused and not ensemble.target_views():
            self.log.warn(f"{' and '.join(f'method.{key}' for key in unused)}: without effect, {spec.name} chooses no layers.")
        once = ensemble.shares_features and (self.recipe.data.augment == "none" or self.task.modality != "image")
        idle = [*idle_choices(params), *idle_settings(ensemble, params, self.recipe.train, once)]
        for text in idle if log_store else ():
            self.log.warn(text)
        self.to_device(ensemble)
        return ensemble

    def to_device(self, ensemble: Ensemble) -> None:
        """Move an ensemble, and the frozen weights it shares with the backbone."""
        ensemble.to(self.device)
        self.backbone.network.to(self.device)
        for linear in ensemble.member_linears():
            if isinstance(linear, MatrixLinear):
                linear.share_weight()

    def load_run(self, run: RunDir, roles: Sequence[str] = ("validation", "test")) -> Ensemble:
        """The trained ensemble of a run.

        Args:
            roles: splits that must be those the run was made with, where they are open.

        Raises:
            CheckpointError: the trained state is missing or damaged, or the checkpoint, the data or their classes are not those
                it was trained on.
        """
        lock = read_json(run.path / "recipe.lock.json")
        if self.digest() != lock["checkpoint"]:
            raise CheckpointError(
                f"The checkpoint '{self.recipe.model.name}' is not the one this run was trained on.",
                "Put the old checkpoint back where model.name points, or train again.",
            )
        require_same(self.backbone, lock, "this run")
        self.require_data(run, roles)
        if (trained := run_classes(run)) != [str(name) for name in self.task.classes]:
            new = [name for name in self.task.classes if name not in trained]
            what = f"'{new[0]}' is new" if new else "their order or number is another"
            raise CheckpointError(
                f"The classes of '{self.recipe.data.name}' are not those that '{run.path}' was trained on: {what}.",
                "Put the data back as they were, or train again.",
            )
        state = trained_state(run)
        ensemble = self.build(log_store=False)
        ensemble.load_trained(state)
        return ensemble

    def require_data(self, run: RunDir, roles: Sequence[str]) -> None:
        """Refuse splits that are not those the run was made with: its scores, temperature and provenance speak of these.

        Args:
            roles: not the training split unless it is used, as it may be large and is read whole for this.

        Raises:
            CheckpointError: naming the split.
        """
        made_with = read_json(run.path / "recipe.lock.json")["data"]
        for role in roles:
            samples: Samples | None = getattr(self.data, role)
            if samples is not None and role in made_with and samples.fingerprint() != made_with[role]:
                raise CheckpointError(
                    f"The {role} split of '{self.recipe.data.name}' is not the one that '{run.path}' was made with.",
                    "Put the data back as they were, or score the new ones as a set of their own: sve shift RUN --sets NAME.",
                )

    def predict(self, ensemble: Ensemble, name: str, model_digest: str, keep_features: bool = False) -> Predictions:
        """Predictions of every member on a split or set, with progress; with their features (M, N, F) if asked for."""
        samples, encoded = self.split(name)
        where = samples.dataset if name not in ROLES else name
        logits_MNC, features_MNF = self.outputs(ensemble, encoded, f"Predicting {where}", keep_features)
        found = as_predictions(logits_MNC, samples, encoded, ensemble.classes, model_digest)
        return replace(found, features_MNF=features_MNF, source_state=state_of(name))

    def training_features(self, ensemble: Ensemble, model_digest: str) -> TrainingFeatures:
        """Features of every member on a draw of the training split, keyed by the recipe's seed and bounded in size."""
        whole = self.data.train
        if whole is None:
            raise DataError("The train split was not loaded.")
        rows = np.arange(len(whole))
        if len(whole) > (kept := rows_kept(ensemble.n_members, self.backbone.feature_dim)):
            rows = np.sort(seeded(self.recipe.seed, "training features").choice(len(whole), kept, replace=False))
        drawn = whole.subset(rows)
        _, features_MKF = self.outputs(ensemble, self.task.encode(drawn), "Training features of every member", keep_features=True)
        assert features_MKF is not None
        return TrainingFeatures(features_MKF, drawn.labels_N, len(whole), model_digest)

    def outputs(
        self, ensemble: Ensemble, encoded: Encoded, text: str, keep_features: bool = False, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (M, N, C) of every member and, if asked for, features (M, N, F), with progress."""
        with self.log.progress(len(encoded) * ensemble.n_members, text) as advance:
            batch = batch_size or self.recipe.evaluate.batch_size
            return predict_logits(ensemble, encoded, batch, None, self.device, increments(advance), keep_features)

    def base_ensemble(self) -> Ensemble | None:
        """The checkpoint as it is, as an ensemble of one; None when it has no usable head."""
        head = self.task.checkpoint_head
        if head is None:
            return None
        ensemble = Ensemble(self.backbone, self.backbone.fresh(), MemberHeads([head]), self.task.classes, MemberContext((0,)))
        self.to_device(ensemble)
        return ensemble


def open_session(
    recipe: Recipe, log: Log, limit: int | None = None, need: tuple[str, ...] = ("train", "validation", "test")
) -> Session:
    """Open the checkpoint and the data of a recipe, and set the task up.

    Raises:
        SveError: anything that is missing or does not fit.
    """
    modality = MODALITY[recipe.task.name]
    data = load_data(recipe.data, modality, recipe.seed, limit, need)
    backbone = load_backbone(recipe.model, recipe.task.name)
    some = data.test or data.train or data.validation
    assert some is not None
    classes = list(some.classes)
    if modality == "multiple_choice":
        splits = [s for s in (data.train, data.validation, data.test) if s is not None]
        most = max(len(c) for s in splits for c in s.inputs["choices"])
        classes = list("ABCDEFGHIJ"[:most])
    task: Task = TASKS.resolve(recipe.task.name)(recipe.task, classes, backbone)
    for note in (*data.notes, *task.notes):
        log.say(note)
    for note in backbone.notes:
        log.warn(note)
    if recipe.data.augment != "none" and modality != "image":
        log.warn("data.augment is without effect: it changes images, and these are none.")
    session = Session(recipe, backbone, data, task, log, limit)
    if recipe.model.random_init or _seems_random(backbone):
        log.warn("This checkpoint looks randomly initialised. The method needs pretrained weights: expect poor results.")
    return session


def _seems_random(backbone: Backbone) -> bool:
    """Whether the layers that `targets: auto` means look untrained; no where there are none, which only some methods mind."""
    try:
        return looks_random(backbone.targets(MethodSpec("sve")))
    except SveError:
        return False


def ood_warnings(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """One sentence for each set that is the run's own data."""
    found = own_data(recipe, names)
    return [f"'{name}' is the data this run was trained or tested on, not an out-of-distribution set." for name in found]


def own_data(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Those of the sets that are the run's own splits, however they are written."""
    data, splits = recipe.data.name, recipe.data.splits
    own = [split for split in (splits.train, splits.validation, splits.test) if split is not None]
    whole = place_of(data)[0]
    places = {place_of(split) for split in own} | {(whole, split) for split in own} | {(whole, None)}
    stored = local_splits(data)
    files = {path.resolve() for split in own for path in stored.get(split) or stored_files(split)}
    return [name for name in names if name in own or place_of(name) in places or stored_files(name) & files]


def state_of(name: str) -> str:
    """`local_state` of a set; '' for a split of the run's own, whatever is called so here."""
    return "" if name in ROLES else local_state(name)


def run_recipe(run: RunDir) -> Recipe:
    """The recipe a run was made with."""
    return load_recipe(str(run.path / "recipe.yaml")).recipe


def environment() -> dict[str, Any]:
    """Versions and hardware, for locks and reports. Versions are the installed packages' own: importing them takes seconds."""
    return {
        "sve": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": version("transformers"), "timm": version("timm"),
        "processor": _processor(), "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run_classes(run: RunDir) -> list[str]:
    """The classes that a run's trained state was made for.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = run.path / "ensemble.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the trained state '{path}' ({error}).", "Train again.") from error
    classes = json.loads(meta.get("meta", "{}")).get("classes")
    if not classes:
        raise CheckpointError(f"The trained state '{path}' does not name its classes.", "Train again.")
    return [str(name) for name in classes]


def trained_state(run: RunDir) -> dict[str, Tensor]:
    """What a run trained, by name.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = run.path / "ensemble.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the trained state '{path}' ({error}).", "Train again.") from error
