"""Both sides of a gate: what is judged, and what it is compared with, opened from files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sve_cli import gate as gates
from sve_cli.errors import SveError
from sve_cli.foreign import open_predictions
from sve_cli.gate import Baseline, Samples
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.posthoc.state import Posthoc
from sve_cli.posthoc.temperature import Temperature
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.report import SCHEMA as REPORT_SCHEMA
from sve_cli.report import MetricValue, Report
from sve_cli.rundir import RunDir
from sve_cli.workflows.compare import open_system, other_evaluation
from sve_cli.workflows.evaluate import build_report
from sve_cli.workflows.stored import stored_posthoc

REPORT_CONFIDENCE = 0.95
COMPARED = ("accuracy", "nll", "brier", "ece_top1_w{bins}")  # where nothing says which metrics


@dataclass(frozen=True)
class Judged:
    """What is gated: test predictions with their report. `folder`: of the run's evaluation, None for a predictions file."""

    name: str
    test: Predictions
    report: Report
    aggregate: str = "probs"
    bins: int = 15
    confidence: float = REPORT_CONFIDENCE
    temperature: Temperature | None = None
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None


@dataclass(frozen=True)
class Reference:
    """What it is compared with. At best `test` (predictions), else `samples` (a baseline file), else `values` alone.

    Attributes:
        values: values by address with intervals at `confidence`.
        exact: the report keys that `samples` give.
        aggregate: how it was evaluated, with its fitted weights if it has some.
    """

    name: str
    test: Predictions | None = None
    samples: Samples | None = None
    values: Mapping[str, MetricValue] = field(default_factory=dict)
    confidence: float = REPORT_CONFIDENCE
    exact: Sequence[str] = ()
    temperature: Temperature | None = None
    aggregate: str = "probs"
    notes: list[str] = field(default_factory=list)


def open_reference(path: Path, prob_columns: Sequence[str] = (), judged: Path | None = None) -> Reference | None:
    """A run's folder, a predictions file, a baseline file or a report.json; None when nothing is there.

    Args:
        judged: the evaluation that is judged; of its own run another one is taken where there is one.

    Raises:
        SveError: something is there that cannot be used.
    """
    if path.suffix == ".json":
        return _open_json(path) if path.is_file() else None
    if path.is_dir():
        system = open_system(path, judged)
        report = _run_report(path, judged)
        return Reference(
            system.name, test=system.test, values=report.addresses(), confidence=_confidence(report),
            temperature=system.temperature, aggregate=system.aggregate,
        )  # fmt: skip
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".parquet") else path
    if not path.is_file() and not stem.with_name(stem.name + ".safetensors").is_file():
        return None
    test, notes = open_predictions(path, prob_columns)
    return Reference(stem.name, test=test, notes=notes)


def _run_report(path: Path, judged: Path | None) -> Report:
    newest = other_evaluation(RunDir.open(path).evaluations(), judged)
    return Report.load(newest / "report.json")


def _confidence(report: Report) -> float:
    """The level of a report's intervals; older reports do not say it."""
    return float(report.provenance.get("confidence", REPORT_CONFIDENCE))


def _open_json(path: Path) -> Reference:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SveError(f"Cannot read the baseline '{path}' ({error}).", "Make it again with: sve gate baseline") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema == gates.BASELINE_SCHEMA:
        found = gates.load_baseline(path, raw)
        return Reference(path.name, samples=found.samples, values=found.values, confidence=found.confidence, exact=found.paired)
    if schema == REPORT_SCHEMA:
        report = Report.load(path)
        note = (
            "The baseline is a report alone, without samples: intervals are unpaired and wider. "
            "A paired comparison needs a baseline file (sve gate baseline) or predictions."
        )
        return Reference(path.name, values=report.addresses(), confidence=_confidence(report), notes=[note])
    raise SveError(f"'{path}' is neither a baseline file nor a report.", "Make one with: sve gate baseline")


def judge_predictions(
    path: Path, spec: EvaluateSpec, ood: Sequence[Path] = (), seed: int = 0, prob_columns: Sequence[str] = ()
) -> Judged:
    """Score a predictions file of this tool or of another one, to be judged; needs no model.

    Raises:
        SveError: it cannot be read or scored.
    """
    test, notes = open_predictions(path, prob_columns)
    others = [open_predictions(other, () if other.suffix == ".npz" else prob_columns)[0] for other in ood]
    report = build_report(f"Predictions {path.stem}", test, others, spec, Posthoc(), None, seed, notes)
    report = replace(report, warnings=[*report.warnings, *notes])
    return Judged(path.stem, test, report, spec.aggregate, spec.bins, spec.confidence, None, notes)


def judge_run(run: RunDir, evaluation: Path, report: Report, spec: EvaluateSpec) -> Judged:
    """A finished evaluation of a run, to be judged.

    Raises:
        SveError: its files cannot be read.
    """
    posthoc = stored_posthoc(evaluation)
    test = Predictions.load(evaluation / "predictions" / "test")
    return Judged(
        run.path.name, test, report, posthoc.how(spec.aggregate), spec.bins, spec.confidence, posthoc.temperature, folder=evaluation
    )


def baseline_of(judged: Judged) -> Baseline:
    """The committable baseline of an evaluated side; members' rows are left out.

    Raises:
        SveError: no labels, or ids that occur twice.
    """
    view = aggregate_members(judged.test, judged.aggregate)
    values = {key: value for key, value in judged.report.addresses().items() if not key.startswith("members.")}
    return gates.make_baseline(
        judged.report.title, view, judged.test.ids_N, judged.test.classes, values, dataset=judged.test.dataset,
        split=judged.test.split, model_digest=judged.test.model_digest, aggregate=judged.aggregate, bins=judged.bins,
        confidence=judged.confidence,
    )  # fmt: skip


def compared_by_default(judged: Judged) -> list[str]:
    """The report addresses that are compared where nothing says which: accuracy, NLL, Brier and ECE, as far as they are there."""
    have = judged.report.addresses()
    return [key for name in COMPARED if (key := name.format(bins=judged.bins)) in have]


def same_classes(baseline: Predictions, test: Predictions) -> tuple[Predictions, Predictions]:
    """Where one side has numbers for names, it takes the other's names."""
    numbers = [str(c) for c in range(test.n_classes)]
    if baseline.classes == test.classes or baseline.n_classes != test.n_classes:
        return baseline, test
    if test.classes == numbers:
        return baseline, replace(test, classes=baseline.classes)
    if baseline.classes == numbers:
        return replace(baseline, classes=test.classes), test
    return baseline, test
