"""A distilled network beside the ensemble it stands for, the averaged network, a single one and the checkpoint as it was.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sve_cli.comparison.paired import centred_interval
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.methods.distilled import Student
from sve_cli.metrics.accuracy import accuracy
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.base import DEFAULT_BINS
from sve_cli.metrics.dirichlet import concentrations, mutual_information
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.intervals import resampling_units, weight_blocks
from sve_cli.metrics.nll import nll
from sve_cli.ood.detection import auroc_ood
from sve_cli.ood.joint import join
from sve_cli.posthoc.state import Posthoc
from sve_cli.prediction import as_predictions, batches_by_length
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json
from sve_cli.statistics import log_option_counts, one_blas_thread
from sve_cli.tasks.common import tensor_to
from sve_cli.workflows.session import Session
from sve_cli.workflows.stored import saved_predictions, stored_aggregate, stored_posthoc

SCORES = {"accuracy": accuracy, "nll": nll, "ece_top1_w15": ece_top1}
KEPT_SCORES = {"nll": "NLL", "ece_top1_w15": "ECE"}
NLL_AIM, AUROC_AIM = 0.05, 0.01
RESAMPLES = 1000  # behind the share of the gain, where the recipe asks for no intervals
DOUBLINGS, HALVINGS = 40, 40  # of the search for its ends


@dataclass(frozen=True)
class Calibrated:
    """How an ensemble's probabilities are made of its members' logits: divided by the temperature, then averaged."""

    temperature: float
    aggregate: str

    @classmethod
    def fitted(cls, posthoc: Posthoc, aggregate: str) -> Calibrated:
        """With the temperature that an evaluation fitted; 1 where there is none, or it ended at a bound."""
        found = posthoc.temperature
        return cls(1.0 if found is None or found.at_bound else found.value, aggregate)

    def view(self, predictions: Predictions) -> Aggregated:
        """The ensemble's probabilities and uncertainties on samples."""
        return aggregate(replace(predictions, logits_MNC=predictions.logits_MNC / self.temperature), self.aggregate)


@dataclass(frozen=True)
class System:
    """What a network or an ensemble says to the test split and to OOD sets.

    Attributes:
        predictions: by set; "test" comes first.
        calibrated: how probabilities are made of them.
        mutual: by set, a mutual information (N,) in nats of its own; None: that of its members.
    """

    predictions: Mapping[str, Predictions]
    calibrated: Calibrated
    mutual: Mapping[str, np.ndarray] | None = None

    @cached_property
    def test(self) -> Aggregated:
        """The labelled test samples."""
        return self.calibrated.view(self.predictions["test"]).labelled()

    def row(self) -> dict[str, Any]:
        """Its figures; none by mutual information for one network without spread, where that is 0 everywhere."""
        row: dict[str, Any] = {key: metric.compute(self.test) for key, metric in SCORES.items()}
        found = {name: self._aurocs(name) for name in self.predictions if name != "test"}
        spread = self.mutual is not None or self.predictions["test"].n_members > 1
        row["auroc_entropy"] = {name: by_entropy for name, (by_entropy, _) in found.items()}
        row["auroc_mutual_information"] = {name: by_mutual for name, (_, by_mutual) in found.items()} if spread else {}
        return row

    def _aurocs(self, name: str) -> tuple[float, float]:
        """By entropy and by mutual information; test and OOD set are joined first, so that both are in one unit."""
        joined = join(self.predictions["test"], self.predictions[name])
        view = self.calibrated.view(joined)
        mutual_N = view.mutual_information_N
        if self.mutual is not None:
            mutual_N = np.concatenate([self.mutual["test"], self.mutual[name]])
            if (scale_N := log_option_counts(joined.mask_NC)) is not None:
                mutual_N = mutual_N / np.where(scale_N > 0, scale_N, 1.0)
        n = self.predictions["test"].n_samples
        by_entropy, by_mutual = (auroc_ood(values_N[:n], values_N[n:]) for values_N in (view.entropy_N, mutual_N))
        return by_entropy, by_mutual


@dataclass(frozen=True)
class Single:
    """Another run's predictions on the same test samples, with its own temperature."""

    path: Path
    test: Predictions
    calibrated: Calibrated


class Interval(NamedTuple):
    """A value with the limits of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Kept:
    """What a distilled network keeps of the ensemble's gain over a single run, by one score.

    Attributes:
        gain: single - ensemble.
        share: (single - distilled) / (single - ensemble); None where the gain's interval does not lie above 0.
    """

    gain: Interval
    share: Interval | None

    def in_words(self) -> str:
        """For the card."""
        value, low, high = self.gain
        shown = f"{value:.4f} (interval {low:.4f} to {high:.4f})"
        if self.share is None:
            return (
                f"no gain of the ensemble over it can be seen, {shown}" if high >= 0 else f"the ensemble is worse than it, {shown}"
            )
        share, least, most = (f"{100 * end:.0f}" for end in self.share)
        return f"the ensemble gains {shown}; {share} % of the ensemble's gain is kept (interval {least} to {most} %)"


@dataclass(frozen=True)
class Comparison:
    """Rows of figures by system: accuracy, nll, ece_top1_w15, auroc_entropy and auroc_mutual_information (by OOD set).

    Attributes:
        n: labelled test samples.
        sets: the run's OOD sets.
        kept: what the distilled network keeps of the gain over the single run, by score; {} without such a run.
        notes: what is missing, and why.
        unlabelled: test samples besides, which only the AUROCs are about.
    """

    n: int
    sets: list[str]
    rows: dict[str, dict[str, Any]]
    kept: dict[str, Kept] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unlabelled: int = 0

    def facts(self) -> dict[str, Any]:
        """Plain values for the certificate."""
        shares = {key: kept.share for key, kept in self.kept.items()}
        return {
            "systems": self.rows,
            "test_samples": self.n,
            "unlabelled_test_samples": self.unlabelled,
            "gain_over_single": {key: kept.gain._asdict() for key, kept in self.kept.items()},
            "kept_of_gain": {key: None if share is None else share.value for key, share in shares.items()},
            "kept_of_gain_interval": {
                key: None if share is None else {"low": share.low, "high": share.high} for key, share in shares.items()
            },
            "aims": self.aims(),
            "notes": self.notes,
        }

    def aims(self) -> dict[str, Any]:
        """NLL relative to the ensemble's, AUROC differences to it, and whether the aims (5 %, 1 point) are met."""
        mine, its = self.rows["distilled"], self.rows["ensemble"]
        ratio = mine["nll"] / its["nll"] - 1
        gaps = {
            f"{key}, {name}": mine[key][name] - its[key][name]
            for key in ("auroc_entropy", "auroc_mutual_information")
            for name in self.sets
        }
        met = {"nll": ratio <= NLL_AIM, "auroc": all(gap >= -AUROC_AIM for gap in gaps.values()) if gaps else None}
        return {"nll_relative": ratio, "auroc_differences": gaps, "met": met}

    def to_markdown(self) -> str:
        """The card's table."""
        heads = ["", "accuracy", "NLL", "ECE"]
        for name in self.sets:
            heads += [f"AUROC {name}, entropy", f"AUROC {name}, mutual information"]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for system, row in self.rows.items():
            cells = [system, *(f"{row[score]:.4f}" for score in SCORES)]
            for name in self.sets:
                cells += [_cell(row["auroc_entropy"].get(name)), _cell(row["auroc_mutual_information"].get(name))]
            lines.append("| " + " | ".join(cells) + " |")
        which = f"the {self.n} labelled of {self.n + self.unlabelled}" if self.unlabelled else f"all {self.n}"
        words = [f"On {which} test samples; AUROC with out-of-distribution inputs as positives"]
        words[0] += ", and with all test samples." if self.unlabelled else "."
        words += [f"{KEPT_SCORES[score]} against the single run: {kept.in_words()}." for score, kept in self.kept.items()]
        return "\n".join(lines) + "\n\n" + " ".join([*words, *self.notes])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def open_single(path: Path, session: Session) -> Single:
    """The run that `--single` names.

    Raises:
        SveError: unfinished, never evaluated, of several members, or tested on other samples.
    """
    run = RunDir.open(path)
    check_seal(run.path)
    test, own = saved_predictions(run, "test", file_digest(run.path / "ensemble.safetensors")), session.data.test
    evaluation = next(iter(run.evaluations()), None)
    if test is None or evaluation is None:
        raise SveError(f"The run '{path}' has no finished evaluation.", f"Make one with: sve evaluate {path}")
    if test.n_members != 1:
        raise SveError(f"The run '{path}' has {test.n_members} members, and --single names a run of one.", "Name one of svfit.")
    if test.classes != [str(name) for name in session.task.classes]:
        raise SveError(f"The run '{path}' has other classes than this one, or in another order.", "Name a run on the same data.")
    # Ids alone are no sign: those of data without ids are the numbers of the rows.
    tested = dict(read_json(run.path / "recipe.lock.json").get("data") or {}).get("test")
    same = own is not None and test.ids_N == list(own.ids_N) and np.array_equal(test.labels_N, own.labels_N)
    if own is None or not same or (tested is not None and tested != own.fingerprint()):
        raise SveError(f"The run '{path}' was tested on other samples than this one.", "Name a run on the same data.")
    return Single(run.path, test, Calibrated.fitted(stored_posthoc(evaluation), stored_aggregate(evaluation)))


def compare_systems(
    session: Session,
    run: RunDir,
    ensemble: Ensemble,
    student: Student,
    calibrated: Calibrated,
    single: Single | None,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Everything on the whole test split and the run's OOD sets; the ensemble's own predictions are those of its evaluation."""
    sets, notes = list(session.recipe.data.ood), list(remarks)
    names, digest = ("test", *sets), file_digest(run.path / "ensemble.safetensors")
    plain, members = Calibrated(1.0, calibrated.aggregate), _members(session, run, ensemble, names, digest)
    systems = {"ensemble": System(members, calibrated)}
    if calibrated.temperature != 1.0:
        systems["ensemble, without temperature"] = System(members, plain)
    systems["distilled"] = student_system(session, student, names)
    systems["averaged"] = System({name: averaged_predictions(session, ensemble, name) for name in names}, plain)
    if single is not None:
        systems["single"] = System({"test": single.test}, single.calibrated)
    base = session.base_ensemble()
    if base is None:
        notes.append("The checkpoint has no classifier for these classes, so there is no row of it as it was.")
    else:
        systems["before training"] = System({name: session.predict(base, name, digest) for name in names}, plain)
    rows = {name: system.row() for name, system in systems.items()}
    if calibrated.temperature != 1.0:
        notes.append(
            f"The ensemble is at its temperature {calibrated.temperature:.4g}, which the distilled network learnt"
            + (", and the single run at its own." if single is not None else ".")
        )
    if session.task.modality == "multiple_choice":
        notes.append("Where the number of options varies, uncertainties are divided by its logarithm, on both sides of an AUROC.")
    kept = {}
    if single is not None:
        one, many, mine = (systems[name].test for name in ("single", "ensemble", "distilled"))
        kept = kept_of_gain(one, many, mine, session.recipe.evaluate, session.recipe.seed)
    n = systems["ensemble"].test.n
    return Comparison(n, sets, rows, kept, notes, members["test"].n_samples - n)


@one_blas_thread()
def kept_of_gain(single: Aggregated, ensemble: Aggregated, distilled: Aggregated, spec: EvaluateSpec, seed: int) -> dict[str, Kept]:
    """By score, from paired resamples of the labelled test samples, which the three have in one order; {} without any."""
    if not single.n:
        return {}
    units = [resampling_units(view, seed) for view in (single, ensemble, distilled)]
    resamples = spec.bootstrap if spec.bootstrap > 1 else RESAMPLES
    functions = {key: [SCORES[key].prepare(view, DEFAULT_BINS) for view in units] for key in KEPT_SCORES}
    drawn: dict[str, list[np.ndarray]] = {key: [] for key in functions}
    for weights_UR in weight_blocks(units[0], resamples, seed):
        for key, three in functions.items():
            drawn[key].append(np.stack([function(weights_UR) for function in three]))
    found = {}
    for key, blocks in drawn.items():
        resampled = np.concatenate(blocks, axis=1)
        seen = np.array([SCORES[key].compute(view) for view in (single, ensemble, distilled)])
        gain, part = seen[0] - seen[1:]
        gain_R, part_R = resampled[0] - resampled[1:]
        low, high = centred_interval(gain_R, gain, spec.confidence)
        share = Interval(float(part / gain), *_share_ends(part_R, gain_R, part, gain, spec.confidence)) if low > 0 else None
        found[key] = Kept(Interval(float(gain), low, high), share)
    return found


def _share_ends(part_R: np.ndarray, gain_R: np.ndarray, part: float, gain: float, confidence: float) -> tuple[float, float]:
    """The shares r for which the interval of part - r gain holds 0 (Fieller 1954, with resamples for the distribution).

    They have two ends where the gain's own interval lies above 0; quantiles of the ratios would suffer from gains near 0.
    """

    def held(share: float) -> bool:
        low, high = centred_interval(part_R - share * gain_R, part - share * gain, confidence)
        return low <= 0.0 <= high

    ends = []
    for direction in (-1.0, 1.0):
        inside, outside = 0.0, direction  # from the share seen
        for _ in range(DOUBLINGS):
            if not held(part / gain + outside):
                break
            inside, outside = outside, 2.0 * outside
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2.0
            inside, outside = (middle, outside) if held(part / gain + middle) else (inside, middle)
        ends.append(float(part / gain + inside))
    return ends[0], ends[1]


def _members(session: Session, run: RunDir, ensemble: Ensemble, names: Sequence[str], digest: str) -> dict[str, Predictions]:
    """What the members say to every set: as the evaluation kept it, unless that was limited to other rows."""
    found = {}
    for name in names:
        kept = saved_predictions(run, name, digest)
        same = kept is not None and kept.ids_N == list(session.split(name)[0].ids_N)
        found[name] = kept if kept is not None and same else session.predict(ensemble, name, digest)
    return found


def student_system(session: Session, student: Student, names: Sequence[str]) -> System:
    """The student's class probabilities on every set, with the mutual information of its Dirichlet."""
    predictions, mutual = {}, {}
    for name in names:
        samples, encoded = session.split(name)
        outputs_NC = session.outputs(student.ensemble, encoded, f"The distilled network on {name}")[0][0]
        predictions[name] = as_predictions(outputs_NC[None, :, :-1], samples, encoded, student.classes, "")
        probs_NC = torch.from_numpy(aggregate(predictions[name]).probs_NC)
        mutual[name] = mutual_information(concentrations(probs_NC, torch.from_numpy(outputs_NC[:, -1]))).numpy()
    return System(predictions, Calibrated(1.0, "probs"), mutual)


def averaged_predictions(session: Session, ensemble: Ensemble, name: str) -> Predictions:
    """The averaged network's predictions on a set."""
    samples, encoded = session.split(name)
    model = ensemble.averaged_model().to(session.device).eval()
    logits_NC = np.zeros((len(encoded), len(ensemble.classes)), dtype=np.float32)
    with torch.inference_mode(), session.log.progress(len(encoded), f"The averaged network on {name}") as advance:
        for rows in batches_by_length(encoded, session.recipe.evaluate.batch_size):
            inputs = tensor_to(encoded.batch(rows), session.device)
            logits_NC[rows] = session.backbone.logits(model, inputs).float().cpu().numpy()
            advance(len(rows))
    return as_predictions(logits_NC[None], samples, encoded, ensemble.classes, "")
