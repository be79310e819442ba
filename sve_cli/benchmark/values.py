"""The values of a benchmark: cells, their results, learning-rate grids, rows and the table."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sve_cli.benchmark.documents import checked, damaged, read_document, without_folders
from sve_cli.errors import SveError
from sve_cli.json_text import to_json
from sve_cli.registry import METRICS

CELL_SCHEMA = "sve-bench-cell/1"
GRID_SCHEMA = "sve-bench-grid/1"
DIVERGED_SCHEMA = "sve-bench-diverged/1"
TABLE_SCHEMA = "sve-bench/1"
DIVERGED = "diverged"  # their folder beside the cells
EARLIER = "earlier"  # results that a wider search of learning rates has put aside
REFERENCE = "single"  # what costs are relative to
# Beside stored grids of one member (older than grids of all members) one search of `single` served these too.
SEARCHED_AS = {"deep_ensemble": "single", "snapshot": "single"}
TRAINED = ("sigma", "band", "lora", "scale", "bias", "norm", "head", "backbone")
BOTH_SCALED = "both_scaled"  # before the key of a paired difference where both sides have their temperature
_DETECTION = {"auroc": True, "aupr": True, "fpr95": False, "ood_auroc": True}  # by how their keys begin
_VERDICT = re.compile(r"tie\b.*|[AB] (better|higher)")
_BINS = re.compile(r"(?<=_[wm])\d*$")


@dataclass(frozen=True)
class Cell:
    """One run to make: a method with a seed, at one point of the sweep (recipe key -> value as text)."""

    method: str
    seed: int
    sweep: Mapping[str, str] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """The row of the table it belongs to."""
        return row_name(self.method, self.sweep)

    @property
    def label(self) -> str:
        return f"{self.row}, seed {self.seed}"


def row_name(method: str, sweep: Mapping[str, str]) -> str:
    """A method with its sweep point, as people read it: keys by their last part, where that says enough."""
    last = [key.rpartition(".")[2] for key in sweep]
    names = last if len(set(last)) == len(last) else list(sweep)
    point = ", ".join(f"{name}={without_folders(value)}" for name, value in zip(names, sweep.values(), strict=True))
    return f"{method} ({point})" if point else method


@dataclass(frozen=True)
class CellResult:
    """What one run reached and cost.

    Attributes:
        task: the recipe's name; recipe: every key path with its value, the checkpoint by its folder's name.
        rates: factor on the learning rates, and the rates themselves.
        metrics: report address -> value, of the ensemble, its post-hoc rows and every OOD set (not of single members).
        parameters, training: as in the run's report and training.json.
        model, command: without the folders of this machine.
        sources: content digests of the 'checkpoint' and of the splits 'train', 'validation' and 'test'; results of older versions
            lack some.
    """

    task: str
    recipe: dict[str, Any]
    limit: int | None
    method: str
    members: int
    seed: int
    sweep: dict[str, str]
    rates: dict[str, float | None]
    metrics: dict[str, float]
    parameters: dict[str, Any]
    training: dict[str, Any]
    rows: dict[str, int]
    model: str
    command: str
    warnings: list[str]
    environment: dict[str, Any]
    run: str
    sources: dict[str, str] = field(default_factory=dict)
    schema: str = CELL_SCHEMA

    @property
    def row(self) -> str:
        return row_name(self.method, self.sweep)

    @property
    def label(self) -> str:
        return f"{self.row}, seed {self.seed}"

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(asdict(self))

    @staticmethod
    def load(path: Path) -> CellResult:
        """Read a cell.

        Raises:
            SveError: unreadable, not a cell, or without the numbers that a table is made of.
        """
        raw = read_document(path, CELL_SCHEMA, CellResult)
        if key := _unusable(raw):
            raise damaged(path, key)
        return CellResult(**raw)


def _unusable(cell: Mapping[str, Any]) -> str | None:
    """The first key of a cell whose value no table can be made with; None: all are fine."""
    metrics = cell["metrics"]
    shown = [k for k in (*TRAINED, "extra_fraction", "stored_bytes", "factor_bytes") if k in cell["parameters"]]
    needed = {f"training.{k}": cell["training"].get(k) for k in ("seconds", "steps", "peak_memory_mb")}
    needed["rates.factor"] = cell["rates"].get("factor")
    # null: not finite. What else a method says of its parameters may be text.
    optional = {**{f"metrics.{k}": v for k, v in metrics.items()}, **{f"parameters.{k}": cell["parameters"][k] for k in shown}}
    faults = [
        *(k for k, v in needed.items() if not is_number(v)),
        *(f"metrics.{k}" for k in ("accuracy", "nll") if k not in metrics),
        *(k for k, v in optional.items() if v is not None and not is_number(v)),
        *(["rows"] if not cell["rows"] else []),
        *(f"rows.{k}" for k, v in cell["rows"].items() if type(v) is not int or v < 1),
        *(f"sweep.{k}" for k, v in cell["sweep"].items() if not isinstance(v, str)),
    ]
    return next(iter(faults), None)


def is_number(value: Any) -> bool:
    """A finite number out of a JSON document; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_paired(document: Any) -> str | None:
    """The first key of a stored `paired.json` that no table can be made with; None: all are fine."""
    if not isinstance(document, dict):
        return "its content"
    left_out, rows = document.get("left_out", []), document.get("rows")
    if not isinstance(document.get("reference"), str):
        return "reference"
    if not isinstance(left_out, list) or not all(isinstance(text, str) for text in left_out):
        return "left_out"
    if not isinstance(rows, dict):
        return "rows"
    for name, row in rows.items():
        found = row.get("differences") if isinstance(row, dict) else None
        if not isinstance(found, dict):
            return f"rows.{name}.differences"
        if not isinstance(row.get("seeds", []), list) or not all(isinstance(seed, int) for seed in row.get("seeds", [])):
            return f"rows.{name}.seeds"
        for key, difference in found.items():
            if not _is_difference(key, difference):
                return f"rows.{name}.differences.{key}"
    return None


def _is_difference(key: str, found: Any) -> bool:
    """Three numbers (NaN: not finite) and a verdict, at an address that can be read."""
    if not isinstance(found, dict) or (key.startswith("ood.") and key.count(".") < 3):
        return False
    by_seed = found.get("by_seed", [])  # documents of before have none
    if not isinstance(by_seed, list):
        return False
    numbers = [*(found.get(k) for k in ("difference", "low", "high")), *by_seed]
    return all(is_number(v) or v != v for v in numbers) and bool(_VERDICT.fullmatch(str(found.get("verdict"))))


@dataclass(frozen=True)
class GridPoint:
    """One point of a learning-rate grid. `validation_nll`: on the selection half; None: it diverged, or was not finite."""

    factor: float
    validation_nll: float | None
    seconds: float


@dataclass(frozen=True)
class Grid:
    """The learning-rate grid of one method. `recipe`, `limit`: what it was searched with, at factor 1."""

    method: str
    members: int
    recipe: dict[str, Any]
    points: list[GridPoint]
    limit: int | None = None
    schema: str = GRID_SCHEMA

    @property
    def best(self) -> GridPoint:
        """The point with the lowest validation NLL.

        Raises:
            SveError: every point diverged.
        """
        usable = [(p.validation_nll, p.factor, p) for p in self.points if p.validation_nll is not None]
        if not usable:
            raise SveError(
                f"{self.method} diverged at every point of its learning-rate grid.",
                f"Lower its rates, as with {self.method}:train.lr=1e-4 or {self.method}:train.head_lr=1e-3.",
            )
        return min(usable)[2]

    @property
    def at_edge(self) -> bool:
        """The best point is the first or the last that was tried: a wider grid might do better."""
        factors = sorted(p.factor for p in self.points)
        return len(factors) > 1 and self.best.factor in (factors[0], factors[-1])

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.points)

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(asdict(self))

    @staticmethod
    def load(path: Path) -> Grid:
        """Read a grid.

        Raises:
            SveError: unreadable, or not a grid.
        """
        raw = read_document(path, GRID_SCHEMA, Grid)
        points = [GridPoint(**checked(p, path, GridPoint)) for p in raw["points"]]
        return Grid(**{**raw, "points": points})


@dataclass(frozen=True)
class Diverged:
    """A cell whose training diverged: it is named below the table and not tried again. `recipe`, `limit`: its settings."""

    method: str
    seed: int
    sweep: dict[str, str]
    recipe: dict[str, Any]
    limit: int | None
    message: str
    schema: str = DIVERGED_SCHEMA

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(asdict(self))

    @staticmethod
    def load(path: Path) -> Diverged:
        """Read one.

        Raises:
            SveError: unreadable, or something else.
        """
        return Diverged(**read_document(path, DIVERGED_SCHEMA, Diverged))


@dataclass(frozen=True)
class Spread:
    """One number over seeds: mean, standard deviation (n - 1; None for one seed), the worst seed (None without a direction)."""

    mean: float
    std: float | None
    worst: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float], key: str) -> Spread:
        """The spread of one metric's values; 'worst' follows its direction."""
        better = higher_is_better(key)
        worst = None if better is None else min(values) if better else max(values)
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, worst, len(values))


@dataclass(frozen=True)
class BenchRow:
    """One row of the table: a method at one sweep point, over its seeds.

    Attributes:
        metrics: address -> spread; `ood_auroc_entropy` and `ood_auroc_mutual_information` are means over the OOD sets.
        parameters: trained numbers by role; extra (all members, heads apart) and its share of the checkpoint; stored bytes.
        costs: measured side by side (see `costs`), relative to `single`: train_time, train_flops, predict_flops, latency_1,
            latency_32; and train_seconds, peak_memory_mb of the runs themselves.
        notes: what a reader must know of this row.
    """

    name: str
    method: str
    members: int
    sweep: dict[str, str]
    seeds: list[int]
    metrics: dict[str, Spread]
    parameters: dict[str, float]
    costs: dict[str, float]
    notes: list[str]


@dataclass(frozen=True)
class BenchTable:
    """All rows of one task. `paired`: differences to `reference` inside or outside of their paired intervals; `one_test`: all
    rows were scored on the same test samples, so that their numbers compare."""

    task: str
    model: str
    rows_of_data: dict[str, int]
    rows: list[BenchRow]
    ood: list[str]
    notes: list[str]
    commands: list[str]
    paired: dict[str, Any] | None = None
    one_test: bool = True
    schema: str = TABLE_SCHEMA

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(asdict(self))


def higher_is_better(key: str) -> bool | None:
    """The direction of a report address; None: it has none, or none that is known. The number of bins does not matter."""
    stem = key.rpartition(".")[2]
    for start, better in _DETECTION.items():
        if stem.startswith(f"{start}_"):
            return better
    direction = next((METRICS.resolve(name).direction for name in METRICS if _BINS.sub("", name) == _BINS.sub("", stem)), "none")
    return None if direction == "none" else bool(direction == "higher")


def load_cells(folder: Path) -> list[CellResult]:
    """Every finished cell of a benchmark's folder, in the order of their names.

    Raises:
        SveError: a file that is no cell.
    """
    return [CellResult.load(path) for path in _files(folder, "*-seed*.json")]


def load_grids(folder: Path) -> dict[str, Grid]:
    """Every grid of a benchmark's folder by method.

    Raises:
        SveError: a file that is no grid.
    """
    return {grid.method: grid for path in _files(folder / "grid", "*.json") if (grid := Grid.load(path))}


def load_diverged(folder: Path) -> list[Diverged]:
    """Every diverged cell of a benchmark's folder, in the order of their names.

    Raises:
        SveError: a file that is none.
    """
    return [Diverged.load(path) for path in _files(folder / DIVERGED, "*.json")]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Without hidden ones: a killed process leaves those it was writing."""
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]
