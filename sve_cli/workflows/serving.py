"""`sve_cli.load`: a run or an adapter as an object that answers inputs. `sve predict` works through it too.

Shapes: M members, N inputs, C classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from sve_cli.backbone import Backbone, load_backbone, require_same
from sve_cli.certified import NEEDED
from sve_cli.decisions import Decided, decide
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckpointError, SveError
from sve_cli.export.adapter import CONFIG, PROBE, STATE, StoredFactors, check_probes, part, read_adapter
from sve_cli.export.distilled import EVIDENCE
from sve_cli.factors import ALGORITHM, FactorStore
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.ood.build import needs_features
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.posthoc.state import Posthoc
from sve_cli.prediction import as_predictions, batches_by_length
from sve_cli.predictions import Predictions
from sve_cli.recipe import Recipe, load_recipe_text
from sve_cli.registry import METHODS, TASKS
from sve_cli.rundir import RunDir, check_seal, file_digest
from sve_cli.samples import DataSet, Samples
from sve_cli.statistics import log_option_counts
from sve_cli.tasks.common import Encoded, Task, tensor_to
from sve_cli.training import mixing_layer
from sve_cli.workflows.evaluate import TRAINING_FEATURES
from sve_cli.workflows.serving_inputs import to_samples, two_inputs
from sve_cli.workflows.session import MODALITY, Log, Session, Silent, default_device, run_classes, run_recipe
from sve_cli.workflows.stored import stored_aggregate, stored_posthoc

if TYPE_CHECKING:
    from sve_cli.workflows.serving_distilled import LoadedDistilled

Execution = Literal["auto", "merged", "batched"]
ROWS_OF_AN_IMAGE = 197  # tokens of a vision transformer at 224 pixels; only the choice of execution depends on it


@dataclass(frozen=True)
class Answers:
    """What an ensemble says to N inputs.

    Attributes:
        labels: the most probable class of each.
        probabilities: (N, C), the mean of the members' probabilities; 0 for options that do not exist.
        entropy, aleatoric, epistemic: (N,), nats: of the mean; mean of the members' entropies; their difference, the mutual
            information between the class and the member.
        decisions: "answer", "abstain" or "out of distribution", by the rules of the run.
        ood_scores: (N,), what the last is decided by; None without such a rule.
        sets: conformal sets as class names, most probable first; None where none were fitted.
        classes: C class names.
    """

    labels: list[str]
    probabilities: np.ndarray
    entropy: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    decisions: list[str]
    ood_scores: np.ndarray | None
    sets: list[list[str]] | None
    classes: list[str]


class LoadedEnsemble:
    """A trained ensemble with the rules of its run.

    Attributes:
        classes: class names.
        rules: what `decisions` follow, in words; also which rules are missing and why.
    """

    def __init__(
        self, session: Session, ensemble: Ensemble, posthoc: Posthoc, how: str, training: TrainingFeatures | None, digest: str,
        again: str,
    ) -> None:  # fmt: skip
        self._session, self._ensemble = session, ensemble
        self._posthoc, self._how, self._training, self._digest = posthoc, how, training, digest
        self.classes = list(ensemble.classes)
        self.missing = missing_rules(posthoc, again)
        self.rules = [*rules_in_words(posthoc), *self.missing]

    @property
    def n_members(self) -> int:
        """How many members answer."""
        return self._ensemble.n_members

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or its image transform."""
        return self._session.backbone.transform

    def predict(self, inputs: Any, batch_size: int | None = None, execution: Execution = "auto") -> Answers:
        """Answer inputs.

        Args:
            inputs: one or a list of: texts (pairs of texts where the run reads pairs); images as paths, PIL images, uint8 arrays or
                encoded bytes; for multiple choice {"question": …, "choices": […], "context": …}.
            batch_size: inputs a batch; None: the recipe's `evaluate.batch_size`.
            execution: "merged": members one after another, each merged into a plain network (its definition); "batched": all in
                one pass, which saves the merging and is faster for few inputs, equal up to rounding; "auto": the cheaper, and
                "merged" where the network cannot compute all in one pass.

        Raises:
            DataError: inputs of another kind, or none.
            SveError: "batched", and the network cannot.
        """
        samples = self.samples(inputs)
        return self.to_answers(self.decide(self.outputs(samples, batch_size, execution)))

    def logits(self, inputs: Any, batch_size: int | None = None, execution: Execution = "auto") -> np.ndarray:
        """The members' logits (M, N, C), float32; arguments as `predict`."""
        return self.outputs(self.samples(inputs), batch_size, execution).logits_MNC

    def outputs(self, samples: Samples, batch_size: int | None = None, execution: Execution = "auto") -> Predictions:
        """The members' logits on samples, with features where a rule needs them; raises as `predict`."""
        if execution not in get_args(Execution):
            raise SveError(f"There is no execution '{execution}'.", f"Known: {', '.join(get_args(Execution))}.")
        encoded = self._session.task.encode(samples)
        if self._in_one_pass(encoded, execution):
            logits_MNC, features_MNF = self._batched(encoded, batch_size), None
        else:
            keep = self._training is not None
            logits_MNC, features_MNF = self._session.outputs(self._ensemble, encoded, "Predicting", keep, batch_size)
        found = as_predictions(logits_MNC, samples, encoded, self.classes, self._digest)
        return replace(found, features_MNF=features_MNF)

    def decide(self, predictions: Predictions) -> Decided:
        """The run's rules on predictions."""
        return decide(predictions, self._posthoc, self._how, self._training)

    def to_answers(self, decided: Decided) -> Answers:
        """Decided samples as plain values."""
        view = decided.view
        sets = None if decided.sets_NC is None else [set_names(decided, i, self.classes) for i in range(view.n)]
        return Answers(
            labels=[self.classes[int(c)] for c in view.predicted_N],
            probabilities=view.probs_NC,
            **in_nats(view),
            decisions=decided.decision_N,
            ood_scores=decided.ood_score_N,
            sets=sets,
            classes=self.classes,
        )

    def _in_one_pass(self, encoded: Encoded, execution: Execution) -> bool:
        """Whether all members compute at once: asked for or cheaper, and possible. Without layers to merge it saves nothing."""
        if execution == "merged" or self._training is not None or not any(True for _ in self._ensemble.member_linears()):
            return False
        if execution == "auto":
            return self._batching_is_cheaper(encoded) and not self._mixing_layer
        if self._mixing_layer:
            raise SveError(
                f"Layer '{self._mixing_layer}' gets the members' rows mixed, so that execution=\"batched\" would answer wrongly.",
                'Use "auto" or "merged".',
            )
        return True

    @cached_property
    def _mixing_layer(self) -> str:
        """As `training.mixing_layer`, found out once, on inputs of its own: a call may bring a single one, or equal ones."""
        recipe, session = self._session.recipe, self._session
        encoded = session.task.encode(two_inputs(MODALITY[recipe.task.name], bool(recipe.data.text_pair)))
        return mixing_layer(self._ensemble, encoded, session.device, range(min(self.n_members, 2)))

    def _batched(self, encoded: Encoded, batch_size: int | None) -> np.ndarray:
        size = max((batch_size or self._session.recipe.evaluate.batch_size) // self.n_members, 1)
        self._ensemble.set_training(False)
        logits_MNC = np.zeros((self.n_members, len(encoded), len(self.classes)), dtype=np.float32)
        with torch.inference_mode():
            for rows in batches_by_length(encoded, size):
                inputs = tensor_to(encoded.batch(rows), self._session.device)
                logits_MNC[:, rows] = self._ensemble(inputs).logits_MBC.float().cpu().numpy()
        return logits_MNC

    def _batching_is_cheaper(self, encoded: Encoded) -> bool:
        """Multiply-adds of one member: building W_m and applying it, against passing its rows through the factors."""
        per_input = ROWS_OF_AN_IMAGE if encoded.lengths_N is None else 0
        rows = per_input * len(encoded) if encoded.lengths_N is None else int(encoded.lengths_N.sum())
        merged = batched = 0.0
        for linear in self._ensemble.member_linears():
            out, inner = linear.weight_OI.shape
            rank = min(out, inner)
            merged += out * inner * (rank + rows)
            batched += rows * rank * (out + inner)
        return batched < merged

    def samples(self, inputs: Any) -> Samples:
        """Inputs as samples without labels.

        Raises:
            DataError: inputs of another kind, or none.
        """
        recipe = self._session.recipe
        return to_samples(inputs, MODALITY[recipe.task.name], bool(recipe.data.text_pair))


def load(
    path: str | Path,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
    log: Log | None = None,
    trust_remote_code: bool = False,
) -> LoadedEnsemble | LoadedDistilled:
    """Open a finished run's folder, an adapter's or a distilled network's folder, or an adapter on the hub by its id.

    Args:
        base: adapters: the checkpoint they belong to, by path or hub id; None: the one the adapter names.
        device: where to compute; None: the GPU if there is one.
        trust_remote_code: adapters: let the checkpoint that the adapter names run code of its own, if the adapter asks for it.

    Raises:
        SveError: nothing there that can be opened.
        CheckpointError: damaged, incomplete, of another checkpoint, or rebuilt otherwise than it was trained.
    """
    log = log or Silent()
    where = torch.device(device) if device is not None else default_device()
    folder = Path(os.path.expanduser(path))
    if (folder / "recipe.yaml").is_file():
        return open_run(RunDir.open(folder), log, where, base)
    if not folder.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")):
        folder = _from_hub(str(path))
    if (folder / EVIDENCE).is_file():
        from sve_cli.workflows.serving_distilled import open_distilled  # it imports this module

        return open_distilled(folder, log, where)
    if not (folder / CONFIG).is_file():
        raise _nothing_to_load(folder)
    return open_adapter(folder, log, where, base, trust_remote_code)


def _nothing_to_load(folder: Path) -> SveError:
    """What is at a place that holds neither a run nor an adapter nor a distilled network, and what to name instead."""
    name = "Name a run's folder, or what `sve export` wrote."
    if not folder.exists():
        return SveError(f"There is no folder '{folder}'.", f"Paths start at the current folder, {Path.cwd()}. {name}")
    if not folder.is_dir():
        return SveError(f"'{folder}' is a file.", f"Name the folder that holds it: {folder.parent}")
    if (folder / "config.json").is_file():
        call = f"its own library; the card says how: {folder / 'README.md'}"
        return SveError(f"'{folder}' is a checkpoint, not an ensemble.", f"Open it with {call}")
    below = sorted({p.parent for marker in ("recipe.yaml", CONFIG, EVIDENCE) for p in folder.glob(f"*/{marker}")})
    if below:
        return SveError(f"'{folder}' holds folders that can be loaded, but is none.", f"Name one: {', '.join(map(str, below[:5]))}")
    what = f"neither a run (recipe.yaml) nor an adapter ({CONFIG}) nor a distilled network ({EVIDENCE})"
    return SveError(f"'{folder}' is {'empty' if not any(folder.iterdir()) else what}.", name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from sve_cli.hub import cache_when_unreachable
    from sve_cli.workflows.push import reason

    try:
        with cache_when_unreachable():
            return Path(snapshot_download(name, allow_patterns=[*(f"*{ending}" for ending in NEEDED), "*.md"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        hint = f"Check the path (paths start at {Path.cwd()}) or the hub id."
        raise SveError(f"There is no folder '{name}', and the hub gave none ({reason(error)}).", hint) from error


def open_run(run: RunDir, log: Log, device: torch.device | None = None, base: str | Path | None = None) -> LoadedEnsemble:
    """A finished run with the rules of its newest evaluation.

    Raises:
        SveError: unfinished or changed, or never evaluated.
    """
    check_seal(run.path)
    recipe = _with_base(run_recipe(run), base)
    classes = run_classes(run)
    evaluation = next(iter(run.evaluations()), None)
    if evaluation is None:
        raise SveError(f"The run '{run.path}' has no finished evaluation.", f"Make one with: sve evaluate {run.path}")
    check_seal(evaluation)
    posthoc = stored_posthoc(evaluation)
    how = stored_aggregate(evaluation)
    training = TrainingFeatures.load(evaluation / TRAINING_FEATURES) if _wants_features(posthoc) else None
    session = _session(recipe, classes, load_backbone(recipe.model, recipe.task.name), log, device)
    again = f"Evaluate again: sve evaluate {run.path}"
    digest = file_digest(run.path / "ensemble.safetensors")
    return LoadedEnsemble(session, session.load_run(run), posthoc, how, training, digest, again)


def open_adapter(
    folder: Path,
    log: Log,
    device: torch.device | None = None,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
) -> LoadedEnsemble:
    """An adapter on top of its checkpoint. What it says of remote code is a stranger's word: only the caller can allow that.

    Raises:
        CheckpointError: damaged, incomplete, of another checkpoint, or rebuilt otherwise than it was trained.
    """
    document, tensors = read_adapter(folder)
    recipe = _with_base(load_recipe_text(document["recipe"], str(folder / CONFIG)), base)
    trusted = recipe.model.trust_remote_code and trust_remote_code
    recipe = replace(recipe, model=replace(recipe.model, trust_remote_code=trusted))
    name = recipe.model.name
    try:
        backbone = load_backbone(recipe.model, recipe.task.name)
    except CheckpointError as error:
        raise CheckpointError(f"{error.message} The adapter needs its checkpoint.", 'Name it, as in base="folder".') from error
    if backbone.digest() != document["base"]["digest"]:
        raise CheckpointError(
            f"The checkpoint '{name}' is not the one this adapter was trained on, '{document['base']['name']}'.",
            "Name the unchanged one with base.",
        )
    require_same(backbone, document["base"], "this adapter")
    stored, algorithm = document["decomposition"]["stored"], document["decomposition"]["algorithm"]
    session = _session(recipe, list(document["classes"]), backbone, log, device)
    method = METHODS.resolve(recipe.method.name)
    factors = StoredFactors(tensors) if stored else FactorStore()
    ensemble = method.build(backbone, session.task, recipe.method, factors, method.Params(**recipe.method.params), recipe.seed)
    if not stored and algorithm != ALGORITHM and any(linear.uses_factors for linear in ensemble.member_linears()):
        raise CheckpointError(
            f"The adapter was trained in a basis computed by '{algorithm}', and this version computes it by '{ALGORITHM}'.",
            "Export it again with --with-basis where it was trained, or use that version.",
        )
    ensemble.load_trained(part(tensors, STATE))
    check_probes(ensemble, part(tensors, PROBE))
    session.to_device(ensemble)
    posthoc = Posthoc.from_json(document["posthoc"]) if document["posthoc"] else Posthoc()
    again = "Evaluate the run with decisions and export it again."
    if _wants_features(posthoc):
        log.warn("The adapter carries no training features, so nothing is called out of distribution.")
        posthoc = replace(posthoc, ood_threshold=None)
    return LoadedEnsemble(session, ensemble, posthoc, document["aggregate"], None, document["tensors"], again)


def _with_base(recipe: Recipe, base: str | Path | None) -> Recipe:
    if base is None:
        return recipe
    revision = None if Path(base).is_dir() else recipe.model.revision  # a local copy has none
    return replace(recipe, model=replace(recipe.model, name=str(base), revision=revision))


def _wants_features(posthoc: Posthoc) -> bool:
    return posthoc.ood_threshold is not None and needs_features([posthoc.ood_threshold.score])


def _session(recipe: Recipe, classes: list[str], backbone: Backbone, log: Log, device: torch.device | None) -> Session:
    task: Task = TASKS.resolve(recipe.task.name)(recipe.task, classes, backbone)
    session = Session(recipe, backbone, DataSet(None, None, None, []), task, log)
    if device is not None:
        session.device = device
    return session


def in_nats(view: Aggregated) -> dict[str, np.ndarray]:
    """Entropy, aleatoric and epistemic part of each input (N,), in nats also where the numbers of options vary.

    A report divides by ln K_n there; an answer must not depend on which other questions were asked with it.
    """
    scale_N = log_option_counts(view.distribution.mask_NC)
    parts = {"entropy": view.entropy_N, "aleatoric": view.expected_entropy_N, "epistemic": view.mutual_information_N}
    return parts if scale_N is None else {name: values_N * scale_N for name, values_N in parts.items()}


def set_names(decided: Decided, i: int, classes: list[str]) -> list[str]:
    """The conformal set of sample i, most probable class first."""
    assert decided.sets_NC is not None
    return [classes[c] for c in np.argsort(-decided.view.probs_NC[i], kind="stable") if decided.sets_NC[i, c]]


def rules_in_words(posthoc: Posthoc) -> list[str]:
    """What decisions follow."""
    rules = []
    if (flag := posthoc.ood_threshold) is not None and flag.threshold is not None:
        rules.append(f"Out of distribution: {flag.score.replace('_', ' ')} above {flag.threshold:.4g}. {flag.guarantee}")
    if (rule := posthoc.abstention) is not None and rule.threshold is not None:
        rules.append(f"Abstain: largest probability below {rule.threshold:.4g}. {rule.guarantee}")
    if posthoc.conformal is not None:
        rules.append(f"Conformal sets: {posthoc.conformal.guarantee}")
    return rules


def missing_rules(posthoc: Posthoc, again: str) -> list[str]:
    """Which decisions cannot be made, and why."""
    if posthoc.abstention is None and posthoc.ood_threshold is None and posthoc.conformal is None:
        return [f"The run's newest evaluation fitted no decisions, so every input is answered. {again}"]
    rules = (posthoc.abstention, posthoc.ood_threshold)
    why = [rule.guarantee.removeprefix("None: ") for rule in rules if rule is not None and rule.threshold is None]
    return [sentence[:1].upper() + sentence[1:] for sentence in why]
