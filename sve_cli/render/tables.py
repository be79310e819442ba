"""What every view of a report shows, as tables of plain text: the views only differ in how they draw a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sve_cli.report import MetricValue, OodSet, ReliabilityBin, Report, Row

MISSING = "–"
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
MAIN_METRICS = ("accuracy", "nll", "ece_top1_w", "brier")
MANY_MEMBERS = 8
SPLIT_METRICS = ("entropy_mean", "expected_entropy_mean", "mutual_information_mean")
OOD_METRICS = ("auroc_ood", "aupr_ood", "aupr_id", "fpr95_ood_positive", "fpr95_id_positive")

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "nll": "NLL",
    "brier": "Brier",
    "ece_top1_w": "ECE",
    "ece_top1_m": "ECE, equal mass",
    "ece_class_w": "ECE, class-wise",
    "ece_debiased_w": "ECE, RMS, debiased",
    "brier_reliability_w": "Brier: reliability",
    "brier_resolution_w": "Brier: resolution",
    "brier_uncertainty": "Brier: uncertainty of the data",
    "mce_top1_w": "Largest bin error",
    "aurc": "AURC",
    "eaurc": "Excess AURC",
    "risk_at_80": "Error at 80 % coverage",
    "risk_at_90": "Error at 90 % coverage",
    "risk_at_95": "Error at 95 % coverage",
    "nll_soft": "NLL, label distribution",
    "kl_soft": "KL, label distribution",
    "brier_soft": "Brier, label distribution",
    "disagreement": "Disagreement",
    "variation_ratio_mean": "Variation ratio",
    "entropy_mean": "Total uncertainty",
    "expected_entropy_mean": "Aleatoric uncertainty",
    "mutual_information_mean": "Epistemic uncertainty",
    "auroc_ood": "AUROC",
    "aupr_ood": "AUPR, OOD",
    "aupr_id": "AUPR, ID",
    "fpr95_ood_positive": "FPR95, OOD caught",
    "fpr95_id_positive": "FPR95, ID kept",
}
_SCORE_NAMES = {
    "energy": "Energy, mean of members",
    "energy_of_mean": "Energy of the mean log-probability",
    "max_logit": "Max logit, mean of members",
    "max_logit_of_mean": "Max logit of the mean",
    "knn": "Nearest neighbours (kNN)",
    "mahalanobis": "Mahalanobis distance",
}
_PERCENT = ("accuracy", "macro_f1", "ece_", "mce_", "auroc_", "aupr_", "fpr95_", "disagreement", "risk_at_", "variation_ratio")
_FOUR_DIGITS = ("aurc", "eaurc", *SPLIT_METRICS)

_PARAMETER_NAMES = {
    "sigma": "Singular values (Σ), all members",
    "bias": "Biases, all members",
    "norm": "Normalisation layers, all members",
    "head": "Heads, all members",
    "backbone": "Backbone weights, trained",
    "checkpoint": "Checkpoint, without its head",
    "extra_fraction": "Σ, biases and norms of all members, as a share of the checkpoint",
    "stored_bytes": "Stored",
    "factor_bytes": "Factors, in the cache (made again from the checkpoint)",
    "targets": "Targeted layers",
    "singular_values_per_member": "Singular values per member",
}


@dataclass(frozen=True)
class Table:
    """A table of plain text. `numeric`: columns set right; `strong`: rows to stress."""

    columns: list[str]
    rows: list[list[str]]
    numeric: frozenset[int] = field(default_factory=frozenset)
    strong: frozenset[int] = field(default_factory=frozenset)


def _stem(key: str) -> str:
    """A metric key without its number of bins: `ece_top1_w15` -> `ece_top1_w`."""
    return re.sub(r"(?<=_[wm])\d+$", "", key)


def metric_name(key: str) -> str:
    """What people call the metric `key`."""
    return _NAMES.get(_stem(key), key.replace("_", " "))


def score_name(key: str) -> str:
    """What people call the OOD score `key`."""
    return _SCORE_NAMES.get(key, key.replace("_", " ").capitalize())


def is_percent(key: str) -> bool:
    """Whether the metric `key` is shown in percent."""
    return key.startswith(_PERCENT)


def format_number(key: str, value: float | None) -> str:
    """A value of the metric `key`, without its unit: percent with one digit, else three or four digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    if is_percent(key):
        # Class-wise errors are averaged over many classes that are never predicted: they are small by construction.
        return f"{100 * value:z.2f}" if key.startswith("ece_class") else f"{100 * value:z.1f}"  # z: no -0.0
    return f"{value:z.4f}" if key in _FOUR_DIGITS else f"{value:z.3f}"


def format_interval(key: str, metric: MetricValue) -> str:
    """`94.7-95.9`, or nothing when no interval was computed."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{format_number(key, metric.low)}-{format_number(key, metric.high)}"


def format_metric(key: str, metric: MetricValue | None) -> str:
    """`95.3 (94.7-95.9)`; without an interval `95.3`; a dash when there is no value."""
    if metric is None:
        return MISSING
    interval = format_interval(key, metric)
    return format_number(key, metric.value) + (f" ({interval})" if interval else "")


def metric_header(key: str, metric: MetricValue | None) -> str:
    """Name, unit and which way is better: `Accuracy % ↑`."""
    parts = [metric_name(key), "%" if is_percent(key) else "", ARROWS[metric.direction] if metric else ""]
    return " ".join(part for part in parts if part)


def find_key(rows: list[Row], stem: str) -> str | None:
    """The first key of `rows` that is `stem`, whatever its number of bins."""
    return next((key for row in rows for key in row.metrics if _stem(key) == stem), None)


def _first(rows: list[Row], key: str) -> MetricValue | None:
    return next((row.metrics[key] for row in rows if key in row.metrics), None)


def main_keys(report: Report) -> list[str]:
    """Keys of the main table that some row has: accuracy, NLL, ECE, Brier."""
    return [key for stem in MAIN_METRICS if (key := find_key(report.rows, stem))]


def ordered_rows(report: Report) -> list[Row]:
    """Ensemble, temperature, vector, before, then the others as they come, members last."""
    rank = {"ensemble": 0, "temperature": 1, "vector": 2, "before": 3}
    return sorted(report.rows, key=lambda row: (row.key.startswith("members."), rank.get(row.key, 4)))


def member_rows(report: Report) -> list[Row]:
    """The members' rows."""
    return [row for row in report.rows if row.key.startswith("members.")]


def score_table(report: Report) -> Table:
    """One line a predictor: accuracy, NLL, ECE, Brier. Many members have a table of their own."""
    members = member_rows(report)
    rows = [row for row in ordered_rows(report) if row not in members or len(members) <= MANY_MEMBERS]
    return _scores(report, rows)


def member_table(report: Report) -> Table | None:
    """One line a member, where the table of predictors leaves them out."""
    members = member_rows(report)
    return _scores(report, members) if len(members) > MANY_MEMBERS else None


def _scores(report: Report, rows: list[Row]) -> Table:
    keys = main_keys(report)
    return Table(
        ["Predictor", *(metric_header(key, _first(rows, key)) for key in keys)],
        [[row.title, *(format_metric(key, row.metrics.get(key)) for key in keys)] for row in rows],
        numeric=frozenset(range(1, len(keys) + 1)),
        strong=frozenset(i for i, row in enumerate(rows) if row.key == "ensemble"),
    )


def further_table(report: Report) -> Table | None:
    """The remaining metrics, one a line, for every predictor that is not a member."""
    rows = [row for row in ordered_rows(report) if not row.key.startswith("members.")]
    shown = {*main_keys(report), *SPLIT_METRICS}
    keys = list(dict.fromkeys(key for row in rows for key in row.metrics if key not in shown))
    rows = [row for row in rows if any(key in row.metrics for key in keys)]
    if not keys:
        return None
    return Table(
        ["Metric", *(row.title for row in rows)],
        [[metric_header(key, _first(rows, key)), *(format_metric(key, row.metrics.get(key)) for row in rows)] for key in keys],
        numeric=frozenset(range(1, len(rows) + 1)),
    )


def reliability_table(report: Report) -> Table | None:
    """The ensemble's bins: samples, confidence, accuracy with its interval."""
    bins = [b for b in report.row("ensemble").reliability if b.count]
    if not bins:
        return None
    rows = [
        [f"{100 * b.lower:.0f} to {100 * b.upper:.0f}", f"{b.count:,}", format_number("accuracy", b.confidence), _accuracy(b)]
        for b in bins
    ]
    return Table(["Confidence %", "Samples", "Mean confidence %", "Accuracy %"], rows, frozenset({1, 2, 3}))


def _accuracy(b: ReliabilityBin) -> str:
    value, low, high = (format_number("accuracy", v) for v in (b.accuracy, b.accuracy_low, b.accuracy_high))
    return f"{value} ({low}-{high})"


def split_parts(report: Report) -> tuple[MetricValue, MetricValue, MetricValue] | None:
    """Total, aleatoric and epistemic uncertainty of the ensemble; None when one is missing or not a number."""
    metrics = report.row("ensemble").metrics
    found = [metrics[key] for key in SPLIT_METRICS if key in metrics and math.isfinite(metrics[key].value)]
    return (found[0], found[1], found[2]) if len(found) == len(SPLIT_METRICS) else None


def split_table(report: Report) -> Table | None:
    """Total = aleatoric + epistemic, in nats and as shares."""
    parts = split_parts(report)
    if parts is None:
        return None
    total = parts[0].value
    names = ("Total (entropy of the mean)", "Aleatoric (mean entropy of the members)", "Epistemic (mutual information)")
    rows = [
        [name, format_metric(key, part), f"{100 * part.value / total:.1f}" if total > 0 else MISSING]
        for name, key, part in zip(names, SPLIT_METRICS, parts, strict=True)
    ]
    return Table(["Uncertainty, mean per sample", "Nats", "Share %"], rows, frozenset({1, 2}), frozenset({0}))


def answer_table(report: Report) -> Table | None:
    """The uncertainty of right and of wrong answers, in nats."""
    parts = [part for part in report.answers if part.metrics]
    if not parts:
        return None
    rows = [
        [f"{part.key.capitalize()} answers", f"{part.n:,}", *(format_metric(key, part.metrics.get(key)) for key in SPLIT_METRICS)]
        for part in parts
    ]
    return Table(["Answers", "Number", "Total, nats", "Aleatoric, nats", "Epistemic, nats"], rows, frozenset({1, 2, 3, 4}))


def ood_table(ood: OodSet) -> Table:
    """One line a score: AUROC, both AUPR, both FPR95."""
    scores = list(ood.scores.values())
    keys = [key for key in OOD_METRICS if any(key in metrics for metrics in scores)]
    first = {key: next(metrics[key] for metrics in scores if key in metrics) for key in keys}
    return Table(
        ["Score", *(metric_header(key, first[key]) for key in keys)],
        [[score_name(score), *(format_metric(key, m.get(key)) for key in keys)] for score, m in ood.scores.items()],
        numeric=frozenset(range(1, len(keys) + 1)),
    )


def history_table(report: Report) -> Table | None:
    """Training loss and validation NLL, one line an epoch."""
    keys = [key for key in ("round", "epoch", "train_loss", "validation_nll") if any(key in line for line in report.history)]
    if not keys:
        return None
    names = {"round": "Round", "epoch": "Epoch", "train_loss": "Training loss", "validation_nll": "Validation NLL"}
    rows = [[_scalar(line.get(key)) for key in keys] for line in report.history]
    return Table([names[key] for key in keys], rows, frozenset(range(len(keys))))


def parameter_table(report: Report) -> Table | None:
    """How much was trained and stored."""
    rows = [[_PARAMETER_NAMES.get(key, key.replace("_", " ")), _quantity(key, value)] for key, value in _flat(report.parameters)]
    return Table(["Parameters", "Number"], rows, frozenset({1})) if rows else None


def definition_table(report: Report) -> Table:
    """Definition, direction and report key of every metric shown."""
    found: dict[str, MetricValue] = {}
    for metrics in [row.metrics for row in ordered_rows(report)] + [m for ood in report.ood for m in ood.scores.values()]:
        for key, metric in metrics.items():
            found.setdefault(key, metric)
    rows = [[f"{metric_name(key)} {ARROWS[metric.direction]}".strip(), metric.definition, key] for key, metric in found.items()]
    return Table(["Metric", "Definition", "Report key"], rows)


def provenance_table(report: Report) -> Table | None:
    """Where the numbers come from."""
    rows = [[key.replace("_", " "), _scalar(value)] for key, value in _flat(report.provenance)]
    return Table(["What", "Value"], rows) if rows else None


def subtitle(report: Report) -> str:
    """Data set, split and sizes in one line."""
    where = ":".join(part for part in (report.dataset, report.split) if part)
    sizes = f"{report.n:,} sample{'s' if report.n != 1 else ''} · {len(report.classes):,} classes"
    return f"{where} · {sizes}" if where else sizes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scalar(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_scalar(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_scalar(item)}" for key, item in value.items())
    return str(value)


def _quantity(key: str, value: object) -> str:
    """A count with thousands separators, a share in percent, bytes in the unit people say."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return _scalar(value)
    if key.endswith("fraction"):
        return f"{100 * value:.3g} %"
    if key.endswith("bytes"):
        size, units = float(value), ["B", "kB", "MB", "GB", "TB"]
        while size >= 1000 and len(units) > 1:
            size, units = size / 1000, units[1:]
        return f"{size:.3g} {units[0]}" if units[0] != "B" else f"{size:.0f} B"
    return f"{value:,}" if isinstance(value, int) else _scalar(value)
