"""The certificate: how far an artifact's answers are from those of the live object it claims to be.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sve_cli.errors import CheckFailed
from sve_cli.metrics.accuracy import accuracy
from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.nll import nll
from sve_cli.predictions import Predictions
from sve_cli.statistics import log_softmax

TOLERANCE = 1e-4  # largest logit gap in float32
FORMAT = "sve-certificate/1"
CERTIFICATE = "certificate.json"
SCORES = {"accuracy": accuracy, "nll": nll, "ece_top1_w15": ece_top1}


@dataclass(frozen=True)
class Gaps:
    """Artifact against live object, on n samples.

    Attributes:
        max_logit_gap: largest |difference| of a logit, over options that exist.
        mean_kl: mean KL(live || artifact) in nats.
        agreement: share of samples with the same most probable class.
        delta: score -> artifact minus live (accuracy, nll, ece_top1_w15); empty without labels.
    """

    n: int
    max_logit_gap: float
    mean_kl: float
    agreement: float
    delta: dict[str, float]


@dataclass(frozen=True)
class Certificate:
    """What was compared with what, and how it came out; written beside the artifact as certificate.json.

    Attributes:
        kind, member, loads_with: of the artifact.
        claim: the live object it was compared with, in one sentence.
        dataset, split, gaps: on which inputs, with which result.
        gap_to_base: largest |logit difference| of the live object to the untrained network with the same head.
        versus_ensemble: averaged only: its scores, the ensemble's on the same samples, and how their predictions differ.
        notes: what a reader should know.
        classes: class names in the order of the logits.
        files: sha256 of every file of the artifact.
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
    gap_to_base: float
    command: str
    created: str
    classes: list[str]
    tolerance: float = TOLERANCE
    versus_ensemble: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {"format": FORMAT, **asdict(self)}

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
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        if self.versus_ensemble:
            lines += ["", f"On the same {gaps.n} samples:", "", "| | accuracy | NLL | ECE |", "|---|---|---|---|"]
            for name in ("averaged", "ensemble"):
                scores = self.versus_ensemble.get(name) or dict.fromkeys(SCORES, float("nan"))
                lines.append(f"| {name} | " + " | ".join(f"{scores[key]:.4f}" for key in SCORES) + " |")
        return "\n".join(lines).rstrip() + "\n"


def _libraries(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "its library"


def compare(live: Predictions, artifact_NC: np.ndarray) -> Gaps:
    """Compare an artifact's logits with the live object's (one member) on the same samples.

    Raises:
        CheckFailed: shapes differ, or the artifact's logits are not finite.
    """
    live_NC = live.logits_MNC[0]
    if artifact_NC.shape != live_NC.shape:
        raise CheckFailed(f"The export gives (samples, classes) {artifact_NC.shape}, the live model {live_NC.shape}.")
    if not np.isfinite(artifact_NC).all():
        raise CheckFailed("The export gives logits that are not finite.")
    mask_NC = np.ones(live_NC.shape, dtype=bool) if live.mask_NC is None else live.mask_NC
    p, q = log_softmax(live_NC, live.mask_NC), log_softmax(artifact_NC, live.mask_NC)
    kl_N = np.where(mask_NC, np.exp(p) * (np.where(mask_NC, p, 0) - np.where(mask_NC, q, 0)), 0).sum(axis=1)
    mine, its = scores(live), scores(replace(live, logits_MNC=artifact_NC[None]))
    return Gaps(
        n=len(live_NC),
        max_logit_gap=logit_gap(live_NC, artifact_NC, live.mask_NC),
        mean_kl=max(float(kl_N.mean()), 0.0),
        agreement=float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        delta={key: its[key] - mine[key] for key in mine},
    )


def logit_gap(a_NC: np.ndarray, b_NC: np.ndarray, mask_NC: np.ndarray | None) -> float:
    """Largest |a - b| over options that exist; infinite when shapes differ or a value is not finite."""
    if a_NC.shape != b_NC.shape:
        return float("inf")
    gap_NC = np.abs(a_NC.astype(np.float64) - b_NC.astype(np.float64))
    if mask_NC is not None:
        gap_NC = gap_NC[mask_NC]
    return float(gap_NC.max()) if np.isfinite(gap_NC).all() else float("inf")


def scores(predictions: Predictions) -> dict[str, float]:
    """Accuracy, NLL and ECE of predictions (members averaged by probability); empty without labels."""
    view = aggregate(predictions)
    return {key: metric.compute(view) for key, metric in SCORES.items()} if view.labelled().n else {}
