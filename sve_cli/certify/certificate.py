"""The certificate: how far an artifact's answers are from those of the live object it claims to be.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sve_cli.certified import FORMAT, document_digest
from sve_cli.errors import CheckFailed
from sve_cli.export.artifact import TOLERANCE
from sve_cli.export.card_metadata import Results
from sve_cli.metrics.accuracy import accuracy
from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.nll import nll
from sve_cli.predictions import Predictions

SCORES = {"accuracy": accuracy, "nll": nll, "ece_top1_w15": ece_top1}


@dataclass(frozen=True)
class Gaps:
    """Artifact against live object, on n samples. Several members are compared one by one in the first, as their mean
    probability in the others.

    Attributes:
        max_logit_gap: largest |difference| of a logit, over options that exist.
        mean_kl: mean KL(live || artifact) in nats.
        agreement: share of samples with the same most probable class.
        delta: score -> artifact minus live (accuracy, nll, ece_top1_w15); empty without labels.
        outputs: largest |difference| of every output besides logits, by name.
    """

    n: int
    max_logit_gap: float
    mean_kl: float
    agreement: float
    delta: dict[str, float]
    outputs: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest of the gaps that a tolerance bounds."""
        return max(self.max_logit_gap, *self.outputs.values()) if self.outputs else self.max_logit_gap


@dataclass(frozen=True)
class Certificate:
    """What was compared with what, and how it came out; written beside the artifact as certificate.json.

    Attributes:
        kind, member, loads_with: of the artifact.
        claim: the live object it was compared with, in one sentence.
        dataset, split, gaps: on which inputs, with which result.
        gap_to_base: largest |logit difference| of the live object to the untrained network with the same head; None where
            that is not known.
        versus_ensemble, versus_member: where the artifact is another thing than the ensemble (the full member): the scores of both
            on the same samples under their names, `delta` (artifact minus the other), `agreement`, `mean_kl` from the other
            to the artifact, in nats, and the ensemble's `temperature` where it is at one.
        notes: what a reader should know.
        classes: class names in the order of the logits.
        facts: what the exporter says besides.
        files: sha256 of every file of the artifact but its card and this certificate.
        versions: of the libraries that reloaded it.
        command, created: how and when (UTC) it was made.
    """

    kind: str
    member: int | None
    loads_with: str
    claim: str
    dataset: str
    split: str
    gaps: Gaps
    gap_to_base: float | None
    command: str
    created: str
    classes: list[str]
    tolerance: float = TOLERANCE
    versus_ensemble: dict[str, Any] | None = None
    versus_member: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON document, with the digest of the rest of it."""
        document = {"format": FORMAT, **asdict(self)}
        return {**document, "digest": document_digest(document)}

    def to_markdown(self) -> str:
        """The section of the artifact's card."""
        gaps = self.gaps
        lines = [
            "## Certificate",
            "",
            f"Made by `{self.command}`. A fresh process reloaded this folder with {_libraries(self.versions)} and answered "
            f"{gaps.n} samples of {self.dataset}:{self.split}. {self.claim} Largest logit gap {gaps.max_logit_gap:.1e} "
            f"(allowed {self.tolerance:.0e}), mean KL {gaps.mean_kl:.1e} nats, agreement {gaps.agreement:.4f}.",
        ]
        if gaps.outputs:
            shown = ", ".join(f"{name.replace('_', ' ')} {gap:.1e}" for name, gap in gaps.outputs.items())
            lines += ["", f"Largest differences of the other outputs: {shown}."]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        for other, found in (("ensemble", self.versus_ensemble), ("member", self.versus_member)):
            if found:
                lines += ["", *_versus_lines(self.kind, other, found, gaps.n)]
        return "\n".join(lines).rstrip() + "\n"


def _libraries(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "its library"


def _versus_lines(kind: str, other: str, found: Mapping[str, Any], n: int) -> list[str]:
    name = "full member" if other == "member" else other
    at = f" at its temperature {found['temperature']:.4g}" if "temperature" in found else ""
    lines = [f"Beside the {name}{at}, on the same {n} samples:", "", "| | accuracy | NLL | ECE |", "|---|---|---|---|"]
    for row, key in ((kind, kind), (name, other)):
        values = found.get(key) or dict.fromkeys(SCORES, float("nan"))
        lines.append(f"| {row} | " + " | ".join(f"{values[score]:.4f}" for score in SCORES) + " |")
    if found.get("delta"):
        lines.append("| difference | " + " | ".join(f"{found['delta'][score]:+.4f}" for score in SCORES) + " |")
    same, kl = found["agreement"], found["mean_kl"]
    return [*lines, "", f"The same most probable class on {same:.1%} of them; mean KL from the {name} {kl:.2e} nats."]


def results_of(certificate: Certificate) -> Results | None:
    """The artifact's scores on the certificate's samples; None where it does not hold them, as they are a defined member's."""
    rows: dict[str, dict[str, float]] = {}
    for other, found in (("member", certificate.versus_member), ("ensemble", certificate.versus_ensemble)):
        if found and found.get(certificate.kind):
            rows |= {certificate.kind: found[certificate.kind], f"the full {other}" if other == "member" else other: found[other]}
    if not rows:
        return None
    return Results(certificate.dataset, certificate.split, certificate.gaps.n, rows, definitions())


def definitions() -> dict[str, str]:
    """What the scores of a certificate are."""
    return {key: metric.definition() for key, metric in SCORES.items()}


def compare(live: Predictions, artifact: np.ndarray) -> Gaps:
    """Compare an artifact's logits (N, C), or (M, N, C) member by member, with the live object's on the same samples.

    Raises:
        CheckFailed: shapes differ, or the artifact's logits are not finite.
    """
    found_MNC = artifact[None] if artifact.ndim == 2 else artifact
    live_MNC = live.logits_MNC
    if found_MNC.shape != live_MNC.shape:
        shape = live_MNC.shape[1:] if artifact.ndim == 2 else live_MNC.shape
        names = "(samples, classes)" if artifact.ndim == 2 else "(members, samples, classes)"
        raise CheckFailed(f"The export gives {names} {artifact.shape}, the live model {shape}.")
    if not np.isfinite(found_MNC).all():
        raise CheckFailed("The export gives logits that are not finite.")
    its = replace(live, logits_MNC=found_MNC)
    gap = max(logit_gap(mine, theirs, live.mask_NC) for mine, theirs in zip(live_MNC, found_MNC, strict=True))
    kl, agreement = distance(live, its)
    return Gaps(n=live_MNC.shape[1], max_logit_gap=gap, mean_kl=kl, agreement=agreement, delta=_delta(its, live))


def distance(reference: Predictions, other: Predictions) -> tuple[float, float]:
    """Mean KL from the reference to the other, in nats, and the share of equal predictions; of the mean probabilities."""
    p, q = aggregate(reference), aggregate(other)
    exists = p.exists_NC
    kl_N = np.where(exists, p.probs_NC * (np.where(exists, p.log_probs_NC, 0) - np.where(exists, q.log_probs_NC, 0)), 0).sum(axis=1)
    return max(float(kl_N.mean()), 0.0), float((p.predicted_N == q.predicted_N).mean())


def beside(kind: str, artifact: Predictions, name: str, other: Predictions) -> dict[str, Any]:
    """An artifact next to what it is not: both scores, their difference, agreement and KL."""
    both = {kind: scores(artifact), name: scores(other)}
    kl, agreement = distance(other, artifact)
    return {**both, "delta": _delta(artifact, other), "agreement": agreement, "mean_kl": kl}


def _delta(artifact: Predictions, live: Predictions) -> dict[str, float]:
    mine, its = scores(live), scores(artifact)
    return {key: its[key] - mine[key] for key in mine}


def logit_gap(a_NC: np.ndarray, b_NC: np.ndarray, mask_NC: np.ndarray | None) -> float:
    """Largest |a - b| over options that exist; infinite when shapes differ or a value is not finite."""
    if a_NC.shape != b_NC.shape:
        return float("inf")
    gap_NC = np.abs(a_NC.astype(np.float64) - b_NC.astype(np.float64))
    if mask_NC is not None:
        gap_NC = gap_NC[mask_NC]
    return float(gap_NC.max()) if np.isfinite(gap_NC).all() else float("inf")


def scores(predictions: Predictions, how: str = "probs") -> dict[str, float]:
    """Accuracy, NLL and ECE of predictions, members averaged as `how` says; empty without labels."""
    view = aggregate(predictions, how)
    return {key: metric.compute(view) for key, metric in SCORES.items()} if view.labelled().n else {}
