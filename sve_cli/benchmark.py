"""What `sve bench` measures: one value per (method, sweep point, seed), and the table over them.

Shapes do not occur here: everything is a named number. A cell is one trained and evaluated run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sve_cli.errors import SveError

CELL_SCHEMA = "sve-bench-cell/1"
GRID_SCHEMA = "sve-bench-grid/1"
TABLE_SCHEMA = "sve-bench/1"
REFERENCE = "single"  # what costs are relative to
# One member of these is trained exactly as `single` is, so that one search of learning rates serves all.
SEARCHED_AS = {"deep_ensemble": "single", "snapshot": "single"}
TRAINED = ("sigma", "lora", "scale", "bias", "norm", "head", "backbone")
_HIGHER = ("accuracy", "macro_f1", "auroc_ood", "aupr_ood", "aupr_id")
_NEUTRAL = ("entropy_mean", "expected_entropy_mean", "mutual_information_mean", "disagreement")


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
    """A method with its sweep point, as people read it."""
    point = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in sweep.items())
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
    schema: str = CELL_SCHEMA

    @property
    def row(self) -> str:
        return row_name(self.method, self.sweep)

    def to_json(self) -> str:
        """The JSON document."""
        return _json(asdict(self))

    @staticmethod
    def load(path: Path) -> CellResult:
        """Read a cell.

        Raises:
            SveError: unreadable, or not a cell.
        """
        return CellResult(**_read(path, CELL_SCHEMA))


@dataclass(frozen=True)
class GridPoint:
    """One point of a learning-rate grid. `validation_nll`: on the selection half; None: it diverged."""

    factor: float
    validation_nll: float | None
    seconds: float


@dataclass(frozen=True)
class Grid:
    """The learning-rate grid of one method. `recipe`: what it was searched with, at factor 1."""

    method: str
    members: int
    recipe: dict[str, Any]
    points: list[GridPoint]
    schema: str = GRID_SCHEMA

    @property
    def best(self) -> GridPoint:
        """The point with the lowest validation NLL.

        Raises:
            SveError: every point diverged.
        """
        usable = [p for p in self.points if p.validation_nll is not None]
        if not usable:
            raise SveError(f"{self.method} diverged at every point of its learning-rate grid.", "Lower train.lr in the recipe.")
        return min(usable, key=lambda p: p.validation_nll or 0.0)

    @property
    def at_edge(self) -> bool:
        """The best point is the first or the last: a wider grid might do better."""
        factors = sorted(p.factor for p in self.points)
        return len(factors) > 1 and self.best.factor in (factors[0], factors[-1])

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.points)

    def to_json(self) -> str:
        """The JSON document."""
        return _json(asdict(self))

    @staticmethod
    def load(path: Path) -> Grid:
        """Read a grid.

        Raises:
            SveError: unreadable, or not a grid.
        """
        raw = _read(path, GRID_SCHEMA)
        return Grid(**{**raw, "points": [GridPoint(**p) for p in raw["points"]]})


@dataclass(frozen=True)
class Spread:
    """One number over seeds: mean, standard deviation (n - 1; None for one seed), the worst seed."""

    mean: float
    std: float | None
    worst: float
    n: int

    @staticmethod
    def of(values: Sequence[float], key: str) -> Spread:
        """The spread of one metric's values; 'worst' follows its direction, and is the largest where it has none."""
        worst = min(values) if key.rpartition(".")[2] in _HIGHER else max(values)
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
    """All rows of one task. `paired`: differences to `reference` inside or outside of their paired intervals."""

    task: str
    model: str
    rows_of_data: dict[str, int]
    rows: list[BenchRow]
    ood: list[str]
    notes: list[str]
    commands: list[str]
    paired: dict[str, Any] | None = None
    schema: str = TABLE_SCHEMA

    def to_json(self) -> str:
        """The JSON document."""
        return _json(asdict(self))


def build_table(
    cells: Sequence[CellResult],
    grids: Mapping[str, Grid],
    costs: Mapping[str, Any] | None,
    paired: Mapping[str, Any] | None = None,
) -> BenchTable:
    """The table over finished cells of one task.

    Args:
        grids: method -> its learning-rate grid. costs: the document of `costs.json`.

    Raises:
        SveError: there are no cells, or they do not belong together.
    """
    if not cells:
        raise SveError("There is no finished run to make a table of.", "Run sve bench to its end.")
    for cell in cells[1:]:
        if differing := different_task(cells[0], cell):
            raise SveError(
                f"These results come from different tasks or settings ({differing[0]}).",
                "Give every benchmark a folder of its own (--out).",
            )
    groups: dict[str, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(cell.row, []).append(cell)
    rows = [_row(name, group, grids, costs) for name, group in groups.items()]
    order = {name: i for i, name in enumerate(dict.fromkeys(c.method for c in cells))}
    rows.sort(key=lambda r: order[r.method])
    first = cells[0]
    sets = list(dict.fromkeys(k.split(".")[1] for c in cells for k in c.metrics if k.startswith("ood.")))
    return BenchTable(
        task=first.task, model=first.model, rows_of_data=first.rows, rows=rows, ood=sets,
        notes=_notes(cells, grids), commands=list(dict.fromkeys(c.command for c in cells)),
        paired=None if paired is None else dict(paired),
    )  # fmt: skip


_OWN = ("method.", "seed", "train.lr", "train.bias_lr", "train.head_lr", "train.weight_decay")  # what cells may differ in


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Key paths both recipes have with different values. Keys that only a newer version knows do not count."""
    return sorted(k for k in one.keys() & other.keys() if one[k] != other[k])


def different_task(one: CellResult, other: CellResult) -> list[str]:
    """Key paths in which two cells of one table must not differ, but do."""
    swept = {*one.sweep, *other.sweep}
    found = [k for k in differing_keys(one.recipe, other.recipe) if not k.startswith(_OWN) and k not in swept]
    return found if one.limit == other.limit else [*found, "--limit"]


def _row(name: str, group: list[CellResult], grids: Mapping[str, Grid], costs: Mapping[str, Any] | None) -> BenchRow:
    group = sorted(group, key=lambda c: c.seed)
    numbers = [{**c.metrics, **_ood_means(c.metrics)} for c in group]
    shared = [k for k in numbers[0] if all(k in other for other in numbers)]
    first = group[0]
    measured = dict((costs or {}).get("methods", {}).get(name, {}))
    measured["train_seconds"] = statistics.fmean(c.training["seconds"] for c in group)
    measured["peak_memory_mb"] = max(c.training["peak_memory_mb"] for c in group)
    notes = []
    if grid := grids.get(first.method) or grids.get(SEARCHED_AS.get(first.method, "")):
        notes.append(f"learning rates × {grid.best.factor:g}" + (" (edge of the grid)" if grid.at_edge else ""))
    parameters = {k: float(v) for k, v in first.parameters.items() if isinstance(v, (int, float))}
    return BenchRow(
        name=name, method=first.method, members=first.members, sweep=first.sweep, seeds=[c.seed for c in group],
        metrics={k: Spread.of([n[k] for n in numbers], k) for k in shared}, parameters=parameters, costs=measured, notes=notes,
    )  # fmt: skip


def _ood_means(metrics: Mapping[str, float]) -> dict[str, float]:
    means = {}
    for score in ("entropy", "mutual_information", "max_probability", "energy"):
        values = [v for k, v in metrics.items() if k.startswith("ood.") and k.endswith(f".{score}.auroc_ood")]
        if values:
            means[f"ood_auroc_{score}"] = statistics.fmean(values)
    return means


def _notes(cells: Sequence[CellResult], grids: Mapping[str, Grid]) -> list[str]:
    notes = []
    steps = {c.row: c.training["steps"] for c in cells}
    if grids:
        sizes = {len(g.points) for g in grids.values()}
        seconds = sum(g.seconds for g in grids.values())
        notes.append(
            f"Learning rates: {'/'.join(map(str, sorted(sizes)))} points a method, all rates scaled together, lowest validation "
            f"NLL; the search took {seconds / 60:.1f} minutes in all, beside the runs."
        )
    if any(c.method == "snapshot" for c in cells):
        notes.append("The cycles of snapshot share the steps of one network; every other member takes all steps.")
    if len({s for s in steps.values()}) > 1:
        notes.append("Every member takes the same number of optimiser steps (deep_ensemble: one member after another).")
    return notes


def higher_is_better(key: str) -> bool | None:
    """The direction of a report address; None: no direction."""
    stem = key.rpartition(".")[2]
    if stem.startswith("ood_auroc") or stem in _HIGHER:
        return True
    return None if stem in _NEUTRAL else False


def load_cells(folder: Path) -> list[CellResult]:
    """Every finished cell of a benchmark's folder, in the order of their names."""
    return [CellResult.load(path) for path in sorted(folder.glob("*-seed*.json"))]


def load_grids(folder: Path) -> dict[str, Grid]:
    """Every grid of a benchmark's folder by method."""
    return {grid.method: grid for path in sorted((folder / "grid").glob("*.json")) if (grid := Grid.load(path))}


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SveError(f"Cannot read '{path}' ({error}).", "Remove it, and it will be measured again.") from error
    if not isinstance(raw, dict) or raw.get("schema") != schema:
        raise SveError(f"'{path}' is not of schema {schema}.", "Give the benchmark a folder of its own (--out).")
    return raw


def _json(document: Any) -> str:
    return json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, Iterable) and not isinstance(value, str) else value
