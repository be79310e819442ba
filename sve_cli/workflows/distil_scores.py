"""A distilled network beside the ensemble it stands for, the averaged network, a single one and the checkpoint as it was.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.methods.distilled import Student
from sve_cli.metrics.accuracy import accuracy
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.dirichlet import concentrations, mutual_information
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.nll import nll
from sve_cli.ood.detection import auroc_ood
from sve_cli.posthoc.state import Posthoc
from sve_cli.prediction import as_predictions, batches_by_length
from sve_cli.predictions import Predictions
from sve_cli.rundir import RunDir, check_seal, file_digest
from sve_cli.statistics import log_option_counts
from sve_cli.tasks.common import tensor_to
from sve_cli.workflows.session import Session
from sve_cli.workflows.stored import saved_predictions, stored_posthoc

SCORES = {"accuracy": accuracy, "nll": nll, "ece_top1_w15": ece_top1}
NLL_AIM, AUROC_AIM = 0.05, 0.01


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
class Single:
    """Another run's predictions on the same test samples, with its own temperature."""

    path: Path
    test: Predictions
    calibrated: Calibrated


@dataclass(frozen=True)
class Comparison:
    """Rows of figures by system: accuracy, nll, ece_top1_w15, auroc_entropy and auroc_mutual_information (by OOD set).

    Attributes:
        n: test samples.
        sets: the run's OOD sets.
        kept: share of the gain over the single run that the distilled network keeps, by score; {} without such a run.
        notes: what is missing, and why.
    """

    n: int
    sets: list[str]
    rows: dict[str, dict[str, Any]]
    kept: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Plain values for the certificate."""
        return {"systems": self.rows, "test_samples": self.n, "kept_of_gain": self.kept, "aims": self.aims(), "notes": self.notes}

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
        words = [f"On all {self.n} test samples; uncertainties in nats, AUROC with out-of-distribution inputs as positives."]
        for score, share in self.kept.items():
            label = {"nll": "NLL", "ece_top1_w15": "ECE"}[score]
            text = "the ensemble gains nothing over it" if share is None else f"{share:.0%} of the ensemble's gain is kept"
            words.append(f"{label} against the single run: {text}.")
        return "\n".join(lines) + "\n\n" + " ".join([*words, *self.notes])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def open_single(path: Path, session: Session) -> Single:
    """The run that `--single` names.

    Raises:
        SveError: unfinished, never evaluated, or tested on other samples.
    """
    run = RunDir.open(path)
    check_seal(run.path)
    test = saved_predictions(run, "test", file_digest(run.path / "ensemble.safetensors"))
    evaluation = next(iter(run.evaluations()), None)
    if test is None or evaluation is None:
        raise SveError(f"The run '{path}' has no finished evaluation.", f"Make one with: sve evaluate {path}")
    if session.data.test is None or test.ids_N != list(session.data.test.ids_N):
        raise SveError(f"The run '{path}' was tested on other samples than this one.", "Name a run on the same data.")
    return Single(run.path, test, Calibrated.fitted(stored_posthoc(evaluation), "probs"))


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
    rows: dict[str, dict[str, Any]] = {}
    digest = file_digest(run.path / "ensemble.safetensors")

    def members(name: str) -> Predictions:
        kept = saved_predictions(run, name, digest)
        same = kept is not None and kept.ids_N == list(session.split(name)[0].ids_N)  # a limited evaluation has other rows
        return kept if kept is not None and same else session.predict(ensemble, name, digest)

    plain = Calibrated(1.0, calibrated.aggregate)
    by_members = {name: members(name) for name in ("test", *sets)}
    rows["ensemble"] = _row(lambda name: calibrated.view(by_members[name]), sets)
    if calibrated.temperature != 1.0:
        rows["ensemble, without temperature"] = _row(lambda name: plain.view(by_members[name]), sets)
    rows["distilled"] = _row(lambda name: student_view(session, student, name), sets)
    averaged = {name: averaged_predictions(session, ensemble, name) for name in ("test", *sets)}
    rows["averaged"] = _row(lambda name: plain.view(averaged[name]), sets, one=True)
    if single is not None:
        rows["single"] = _row(lambda name: single.calibrated.view(single.test), [], one=True)
    base = session.base_ensemble()
    if base is None:
        notes.append("The checkpoint has no classifier for these classes, so there is no row of it as it was.")
    else:
        before = {name: session.predict(base, name, digest) for name in ("test", *sets)}
        rows["before training"] = _row(lambda name: plain.view(before[name]), sets, one=True)
    if calibrated.temperature != 1.0:
        notes.append(
            f"The ensemble is at its temperature {calibrated.temperature:.4g}, which the distilled network learnt"
            + (", and the single run at its own." if single is not None else ".")
        )
    kept = {} if single is None else {key: _kept(rows, key) for key in ("nll", "ece_top1_w15")}
    return Comparison(by_members["test"].n_samples, sets, rows, kept, notes)


def _kept(rows: dict[str, dict[str, Any]], key: str) -> float | None:
    """(single - distilled) / (single - ensemble); None where the ensemble is no better."""
    gain = rows["single"][key] - rows["ensemble"][key]
    return (rows["single"][key] - rows["distilled"][key]) / gain if gain > 0 else None


def _row(view: Callable[[str], Aggregated], sets: Sequence[str], one: bool = False) -> dict[str, Any]:
    """`one`: a network without spread, whose mutual information is 0 everywhere and no score."""
    test = view("test")
    row: dict[str, Any] = {key: metric.compute(test.labelled()) for key, metric in SCORES.items()}
    others = {name: view(name) for name in sets}
    row["auroc_entropy"] = {name: auroc_ood(test.entropy_N, other.entropy_N) for name, other in others.items()}
    spread = {name: auroc_ood(test.mutual_information_N, other.mutual_information_N) for name, other in others.items()}
    row["auroc_mutual_information"] = {} if one else spread
    return row


def student_view(session: Session, student: Student, name: str) -> Aggregated:
    """The student's class probabilities on a set, with the mutual information of its Dirichlet."""
    samples, encoded = session.split(name)
    outputs_NC = session.outputs(student.ensemble, encoded, f"The distilled network on {name}")[0][0]
    found = as_predictions(outputs_NC[None, :, :-1], samples, encoded, student.classes, "")
    view = aggregate(found)
    alpha_NC = concentrations(torch.from_numpy(view.probs_NC), torch.from_numpy(outputs_NC[:, -1]))
    mutual_N = mutual_information(alpha_NC).numpy()
    if (scale_N := log_option_counts(encoded.mask_NC)) is not None:
        mutual_N = mutual_N / np.where(scale_N > 0, scale_N, 1.0)
    return replace(view, mutual_information_N=mutual_N)


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
