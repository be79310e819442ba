"""Report: metric -> value, interval, n, direction, definition; with provenance. JSON is the truth, the rest are views."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sve_cli.errors import SveError

SCHEMA = "sve-report/1"
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
    """One OOD set: score name -> metric key -> value. `histograms`: score -> edges and counts of both sides."""

    name: str
    n_id: int
    n_ood: int
    scores: dict[str, dict[str, MetricValue]]
    histograms: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything a reader needs to judge a run.

    Attributes:
        title: what was evaluated, one line.
        headline: plain sentences, the verdict first.
        rows: scored predictors; the key "ensemble" is always there.
        ood: OOD sets.
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
        """A value by its address: `nll`, `temperature.nll`, `members.0.nll`, `ood.<set>.<score>.auroc_ood`.

        Raises:
            SveError: nothing has that address.
        """
        table = self.addresses()
        if address not in table:
            raise SveError(f"The report has no metric '{address}'.", f"It has: {', '.join(sorted(table)[:40])}.")
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
        return table

    def to_json(self) -> str:
        """The JSON document; numbers that are not finite become null (JSON has no NaN)."""
        return json.dumps(_finite(asdict(self)), indent=1, ensure_ascii=False) + "\n"

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
        rows = [
            Row(r["key"], r["title"], _metrics(r["metrics"]), [ReliabilityBin(**b) for b in r["reliability"]])
            for r in raw.pop("rows")
        ]
        ood = [
            OodSet(o["name"], o["n_id"], o["n_ood"], {s: _metrics(m) for s, m in o["scores"].items()}, o["histograms"])
            for o in raw.pop("ood")
        ]
        return Report(rows=rows, ood=ood, **raw)


def _metrics(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricValue]:
    return {
        name: MetricValue(**{**value, "value": math.nan if value["value"] is None else value["value"]})
        for name, value in raw.items()
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
