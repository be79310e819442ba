"""Report: metric -> value, interval, n, direction, definition; with provenance. JSON is the truth, the rest are views."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sve_cli.errors import SveError
from sve_cli.json_text import to_json

SCHEMA = "sve-report/1"
SPECTRUM_VERSION = 1
SHOWN = 30  # addresses at most in a message
Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class MetricValue:
    """One number. `low`/`high`: bootstrap interval, None when not computed. `direction`: which way is better."""

    value: float
    n: int
    direction: Direction
    definition: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: (lower, upper] confidence, count, mean confidence, accuracy, Wilson interval."""

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Row:
    """One scored predictor: the ensemble, a member, the temperature-scaled ensemble, the checkpoint before training."""

    key: str
    title: str
    metrics: dict[str, MetricValue]
    reliability: list[ReliabilityBin] = field(default_factory=list)


@dataclass(frozen=True)
class OodSet:
    """One OOD set: score name -> metric key -> value.

    Attributes:
        histograms: score -> edges and counts of both sides ("edges", "id", "ood"), and points of the ROC curve ("roc_id": share of
            in-distribution samples flagged, "roc_ood": share of this set flagged).
        group: "near", "far" or "".
    """

    name: str
    n_id: int
    n_ood: int
    scores: dict[str, dict[str, MetricValue]]
    histograms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Decision:
    """One rule that was fitted on the calibration half of validation, and what it did on the test set.

    Attributes:
        key: "conformal", "abstention" or "ood".
        rule: in words, with its threshold.
        n: calibration samples it was fitted on.
        guarantee, assumption: what holds, and under which condition.
        measured: name -> value on the test set (and OOD sets), with its interval.
    """

    key: str
    title: str
    rule: str
    n: int
    guarantee: str
    assumption: str
    measured: dict[str, MetricValue]


@dataclass(frozen=True)
class BinChoice:
    """The top-label calibration error with another number of bins, of equal width and of equal mass."""

    bins: int
    width: float
    mass: float


@dataclass(frozen=True)
class ClassRow:
    """One class. `precision` is None where it is never predicted, `recall` where it never occurs; `ece`: one against the rest."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    ece: float


@dataclass(frozen=True)
class Slice:
    """The samples whose `column` is `value`.

    Attributes:
        metrics: accuracy, NLL and calibration error; empty where there are too few samples.
        worse: metric -> p of "not worse than the rest", corrected for all slices and metrics (Holm).
    """

    column: str
    value: str
    n: int
    metrics: dict[str, MetricValue] = field(default_factory=dict)
    worse: dict[str, float] = field(default_factory=dict)

    @property
    def p_worse(self) -> float:
        """The smallest corrected p of the slice; 1 where nothing was tested."""
        return min(self.worse.values(), default=1.0)


@dataclass(frozen=True)
class RiskCurve:
    """The error rate of the most confident samples, by the share of the samples that is answered.

    Attributes:
        coverage: shares from above 0 to 1; risk: the error rate at each; low, high: its Wilson interval.
        oracle: the error rate at each, were every wrong answer less confident than every right one.
        random: the error rate at every share, were the answered ones drawn by chance.
    """

    coverage: list[float]
    risk: list[float]
    low: list[float]
    high: list[float]
    oracle: list[float]
    random: float


@dataclass(frozen=True)
class AnswerPart:
    """The uncertainty of the right or of the wrong answers.

    Attributes:
        key: "right" or "wrong".
        metrics: total, aleatoric and epistemic uncertainty; empty without such answers.
        edges, counts: histogram of the total uncertainty; the edges are those of the other part.
    """

    key: str
    n: int
    metrics: dict[str, MetricValue]
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Signature:
    """A known way in which ensembles fail, looked for on the test set.

    Attributes:
        key: its name; title: in words; found: whether the test set shows it.
        sentence: what was measured; value: the number that decides.
        setting: the recipe key to try, with a value; advice: why, and what else.
    """

    key: str
    title: str
    found: bool
    sentence: str
    value: MetricValue
    setting: str
    advice: str


@dataclass(frozen=True)
class SpectrumLayer:
    """How far training moved the singular values of one layer, |s_m - S| / S.

    Attributes:
        values: how many singular values of the layer train in each member.
        moved: mean over members and singular values.
        by_rank: the same for consecutive parts of the spectrum of equal length, the largest singular values first.
        cosine: mean cosine between two members' relative changes; None for one member, or where a member does not move.
    """

    name: str
    values: int
    moved: float
    by_rank: list[float]
    cosine: float | None


@dataclass(frozen=True)
class Spectrum:
    """Where the members' singular values moved. `start`: what |s_m - S| / S is on average by the noise at the start alone."""

    members: int
    start: float | None
    layers: list[SpectrumLayer]
    version: int = SPECTRUM_VERSION


@dataclass(frozen=True)
class Report:
    """Everything a reader needs to judge a run.

    Attributes:
        title: what was evaluated, one line.
        headline: plain sentences, the verdict first.
        rows: scored predictors; the key "ensemble" is always there.
        ood: OOD sets.
        decisions: conformal sets, abstention and OOD thresholds.
        bin_choices: the calibration error with other numbers of bins.
        per_class: one row a class; empty where the options vary.
        slices: parts of the test set.
        risk_curve: error rate by the share answered; None without labels.
        answers: the uncertainty of right and of wrong answers.
        diagnosis: the known failures that were looked for, found or not.
        spectrum: where Σ moved; None for methods without Σ.
        warnings: what weakens the numbers (tiny set, --limit, mixed labels, …).
        history: one dict an epoch (round, epoch, train_loss, validation_nll, …).
        parameters: trained and stored numbers: sigma, bias, norm, head, backbone, extra_fraction, stored_bytes, …
        provenance: versions, digests, seeds, hardware, command, aggregate, precision gap, …
    """

    title: str
    headline: list[str]
    rows: list[Row]
    dataset: str
    split: str
    n: int
    classes: list[str]
    ood: list[OodSet] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    bin_choices: list[BinChoice] = field(default_factory=list)
    per_class: list[ClassRow] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    risk_curve: RiskCurve | None = None
    answers: list[AnswerPart] = field(default_factory=list)
    diagnosis: list[Signature] = field(default_factory=list)
    spectrum: Spectrum | None = None
    warnings: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    def row(self, key: str) -> Row:
        """The row called `key`.

        Raises:
            SveError: there is none.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise SveError(f"The report has no row '{key}'.", f"Rows: {', '.join(r.key for r in self.rows)}.")

    def metric(self, address: str) -> MetricValue:
        """A value by its address: `nll`, `temperature.nll`, `members.0.nll`, `ood.<set>.<score>.auroc_ood`,
        `slice.<column>.<value>.accuracy`.

        Raises:
            SveError: nothing has that address.
        """
        table = self.addresses()
        if address not in table:
            raise SveError(f"The report has no metric '{address}'.", _nearest(address, list(table)))
        return table[address]

    def addresses(self) -> dict[str, MetricValue]:
        """Every value under its address. The ensemble's metrics have no prefix."""
        table: dict[str, MetricValue] = {}
        for row in self.rows:
            prefix = "" if row.key == "ensemble" else f"{row.key}."
            table.update({f"{prefix}{name}": value for name, value in row.metrics.items()})
        for ood in self.ood:
            for score, metrics in ood.scores.items():
                table.update({f"ood.{ood.name}.{score}.{name}": value for name, value in metrics.items()})
        for group, scores in self.ood_groups().items():
            for score, metrics in scores.items():
                table.update({f"ood.{group}.{score}.{name}": value for name, value in metrics.items()})
        for decision in self.decisions:
            table.update({f"decisions.{decision.key}.{name}": value for name, value in decision.measured.items()})
        table.update({f"diagnosis.{signature.key}": signature.value for signature in self.diagnosis})
        for part in self.slices:
            table.update({f"slice.{part.column}.{part.value}.{name}": value for name, value in part.metrics.items()})
        return table

    def ood_groups(self) -> dict[str, dict[str, dict[str, MetricValue]]]:
        """Group ("near", "far") -> score -> metric key -> mean over the group's sets, each set counting once; no intervals."""
        found: dict[str, dict[str, dict[str, MetricValue]]] = {}
        for group in dict.fromkeys(ood.group for ood in self.ood if ood.group):
            sets = [ood for ood in self.ood if ood.group == group]
            found[group] = {
                score: {key: _mean_over_sets([s.scores[score][key] for s in sets]) for key in metrics}
                for score, metrics in sets[0].scores.items()
                if all(score in s.scores for s in sets)
            }
        return found

    def to_json(self) -> str:
        """The JSON document; numbers that are not finite become null (JSON has no NaN)."""
        return to_json(asdict(self))

    @staticmethod
    def load(path: Path) -> Report:
        """Read a report.json.

        Raises:
            SveError: the file is missing or is not a report of this schema.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SveError(f"Cannot read the report '{path}' ({error}).") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise SveError(f"'{path}' is not a report of schema {SCHEMA}.")
        try:
            return _from_document(raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise SveError(f"The report '{path}' is damaged ({type(error).__name__}: {error}).", "Evaluate again.") from error


def _from_document(raw: dict[str, Any]) -> Report:
    """The report in a document of this schema; consumes it."""
    rows = [
        Row(r["key"], r["title"], _metrics(r["metrics"]), [ReliabilityBin(**b) for b in r["reliability"]]) for r in raw.pop("rows")
    ]
    ood = [
        OodSet(**{**o, "scores": {s: _metrics(m) for s, m in o["scores"].items()}})  # older reports have no groups
        for o in raw.pop("ood")
    ]
    decisions = [Decision(**{**d, "measured": _metrics(d["measured"])}) for d in raw.pop("decisions", [])]
    parts: dict[str, Any] = {  # older reports have none of these
        "bin_choices": [BinChoice(**b) for b in raw.pop("bin_choices", [])],
        "per_class": [ClassRow(**c) for c in raw.pop("per_class", [])],
        "slices": [Slice(**{**s, "metrics": _metrics(s["metrics"])}) for s in raw.pop("slices", [])],
        "risk_curve": RiskCurve(**curve) if (curve := raw.pop("risk_curve", None)) else None,
        "answers": [AnswerPart(**{**a, "metrics": _metrics(a["metrics"])}) for a in raw.pop("answers", [])],
        "diagnosis": [Signature(**{**s, "value": _metrics({"": s["value"]})[""]}) for s in raw.pop("diagnosis", [])],
        "spectrum": _spectrum(raw.pop("spectrum", None)),
    }
    return Report(rows=rows, ood=ood, decisions=decisions, **parts, **raw)


def _mean_over_sets(values: list[MetricValue]) -> MetricValue:
    mean = sum(value.value for value in values) / len(values)
    definition = f"Mean over {len(values)} set{'s' if len(values) > 1 else ''}. {values[0].definition}"
    return MetricValue(mean, sum(value.n for value in values), values[0].direction, definition)


def _spectrum(raw: dict[str, Any] | None) -> Spectrum | None:
    """None also for a version that this program does not know."""
    if raw is None or raw.get("version") != SPECTRUM_VERSION:
        return None
    return Spectrum(**{**raw, "layers": [SpectrumLayer(**layer) for layer in raw["layers"]]})


def _metrics(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricValue]:
    return {
        name: MetricValue(**{**value, "value": math.nan if value["value"] is None else value["value"]})
        for name, value in raw.items()
    }


def _nearest(address: str, known: list[str]) -> str:
    """The address that was probably meant, and the first of the known ones."""
    plain = sorted(known, key=lambda name: (name.count("."), name))
    longer = [name for name in plain if address and name.startswith(address) and name.count(".") == address.count(".")]
    close = longer[:6] or difflib.get_close_matches(address, plain, 1)
    meant = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    more = f" and {len(plain) - SHOWN} more" if len(plain) > SHOWN else ""
    return f"{meant}It has: {', '.join(plain[:SHOWN])}{more}."
