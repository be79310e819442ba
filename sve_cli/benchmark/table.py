"""Finished cells to the table: which belong together, and means, spreads and notes over their seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sve_cli.benchmark.values import REFERENCE, SEARCHED_AS, BenchRow, BenchTable, CellResult, Diverged, Grid, Spread, row_name
from sve_cli.errors import SveError
from sve_cli.registry import METHOD_ALIASES, ONE_NETWORK

PRECISION = "train.precision"
SPLITS = ("train", "validation", "test")
_SOURCES = {"checkpoint": "the checkpoint's content"} | {split: f"the {split} rows" for split in SPLITS}
_OWN = ("method.", "seed", "train.lr", "train.bias_lr", "train.head_lr", "train.weight_decay")  # what cells may differ in


def build_table(
    cells: Sequence[CellResult],
    grids: Mapping[str, Grid],
    costs: Mapping[str, Any] | None,
    paired: Mapping[str, Any] | None = None,
    diverged: Sequence[Diverged] = (),
) -> BenchTable:
    """The table over finished cells of one task.

    Args:
        grids: method -> its learning-rate grid. costs, paired: the documents of `costs.json` and `paired.json`.
        diverged: cells that have no result.

    Raises:
        SveError: there are no cells, or they do not belong together.
    """
    if not cells:
        raise SveError("There is no finished run to make a table of.", "Run sve bench to its end.")
    one_test = True
    for one, other in itertools.combinations(cells, 2):
        changed = _different_sources(one, other)
        one_test = one_test and "test" not in changed
        differing = different_task(one, other) + ([] if _swept_sources(one, other) else [_SOURCES[key] for key in changed])
        if one.row == other.row:  # seeds of one row differ in nothing else
            differing = [*differing, *(k for k in differing_keys(one.recipe, other.recipe) if k != "seed")]
        if differing:
            raise SveError(
                f"'{one.label}' and '{other.label}' do not belong in one table: they differ in {differing[0]}.",
                "Give every benchmark a folder of its own (--out), or remove the files of one of them.",
            )
        if (one.row, one.seed) == (other.row, other.seed):
            raise SveError(f"'{one.label}' has two results, '{one.run}' and '{other.run}'.", "Remove the file of one of them.")
    groups: dict[str, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(cell.row, []).append(cell)
    rows = [_row(name, group, grids, costs) for name, group in groups.items()]
    rows.sort(key=by_size)
    first = cells[0]
    sets = list(dict.fromkeys(name for c in cells for name in _ood_sets(c)))
    notes = [*_notes(cells, grids, one_test), *_gaps(cells, diverged), *_cost_notes(costs or {})]
    return BenchTable(
        task=first.task, model=first.model, rows_of_data=first.rows, rows=rows, ood=sets,
        notes=[*notes, *_paired_notes(paired or {}, rows)], commands=list(dict.fromkeys(c.command for c in cells)),
        paired=None if paired is None else dict(paired), one_test=one_test,
    )  # fmt: skip


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Key paths both recipes have with different values. Keys that only a newer version knows do not count, and not a precision of
    `auto`, which may mean the other's: what it meant is among a run's facts."""
    found = sorted(k for k in one.keys() & other.keys() if one[k] != other[k])
    return [k for k in found if k != PRECISION or "auto" not in (one[k], other[k])]


def different_task(one: CellResult, other: CellResult) -> list[str]:
    """Key paths in which two cells of one table must not differ, but do."""
    swept = {*one.sweep, *other.sweep}
    found = different_task_keys(one.recipe, other.recipe, swept)
    took = {precision_of(one), precision_of(other)} - {None}
    if len(took) > 1 and PRECISION not in (*found, *swept):
        found.append(PRECISION)
    return found if one.limit == other.limit else [*found, "--limit"]


def precision_of(cell: CellResult) -> str | None:
    """What a cell's network was trained in; None where that is not known, or only heads were trained."""
    asked = cell.recipe.get(PRECISION, "auto")
    return cell.training.get("precision") or (None if asked == "auto" else asked)


def _different_sources(one: CellResult, other: CellResult) -> list[str]:
    """What of `_SOURCES` has other content in the other cell, of what should be the same in all; older results do not say."""
    keys = {"checkpoint", *SPLITS} if one.seed == other.seed else {"checkpoint"}  # each seed holds out rows of its own
    if one.limit is None or one.recipe.get("data.seed") is not None:  # else, in results of older versions, it drew test rows too
        keys.add("test")
    shared = keys & one.sources.keys() & other.sources.keys()
    return [key for key in sorted(shared) if one.sources[key] != other.sources[key]]


def _swept_sources(one: CellResult, other: CellResult) -> bool:
    """Whether a sweep names other sources itself; else a file was changed."""
    return any(key.startswith(("model.", "data.", "task.")) for key in (*one.sweep, *other.sweep))


def different_task_keys(one: Mapping[str, Any], other: Mapping[str, Any], swept: Iterable[str]) -> list[str]:
    """Key paths in which two recipes (key path -> value) of one table must not differ, but do; those swept may."""
    return [k for k in differing_keys(one, other) if not k.startswith(_OWN) and k not in set(swept)]


def by_size(row: BenchRow | CellResult) -> tuple[bool, str, list[tuple[int, float, str]]]:
    """The order of a table's rows: the reference of costs first, the values of a sweep by size."""
    return row.method != REFERENCE, row.method, [_natural(v) for v in row.sweep.values()]


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by their size, before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def _row(name: str, group: list[CellResult], grids: Mapping[str, Grid], costs: Mapping[str, Any] | None) -> BenchRow:
    group = sorted(group, key=lambda c: c.seed)
    numbers = [{**c.metrics, **_ood_means(c)} for c in group]
    shared = [k for k in numbers[0] if all(n.get(k) is not None for n in numbers)]  # null: not finite
    first = group[0]
    measured = dict((costs or {}).get("methods", {}).get(name, {}))
    measured["train_seconds"] = statistics.fmean(c.training["seconds"] for c in group)
    measured["peak_memory_mb"] = max(c.training["peak_memory_mb"] for c in group)
    notes = []
    factor = first.rates["factor"]
    if grid := searched(first, grids):
        notes.append(f"learning rates × {factor:.3g}" + (" (edge of the grid)" if grid.at_edge else ""))
    parameters = {k: float(v) for k, v in first.parameters.items() if isinstance(v, (int, float))}
    return BenchRow(
        name=name, method=first.method, members=first.members, sweep=first.sweep, seeds=[c.seed for c in group],
        metrics={k: Spread.of([n[k] for n in numbers], k) for k in shared}, parameters=parameters, costs=measured, notes=notes,
    )  # fmt: skip


def searched(cell: CellResult, grids: Mapping[str, Grid]) -> Grid | None:
    """The learning-rate grid that a cell's rates come from: its method's, or that of the method it was once searched as."""
    of_one = (*ONE_NETWORK, *METHOD_ALIASES)  # grids of these have one member in every version
    older = any(grid.members == 1 < cell.members and grid.method not in of_one for grid in grids.values())
    for method in (cell.method, *([SEARCHED_AS[cell.method]] if older and cell.method in SEARCHED_AS else [])):
        grid = grids.get(method)
        if grid and any(p.validation_nll is not None for p in grid.points) and grid.best.factor == cell.rates["factor"]:
            return grid
    return None


def _ood_sets(cell: CellResult) -> list[str]:
    """Its OOD sets, without the groups of them ("near", "far") that a report has means of."""
    groups = {group for group in ("near", "far") if cell.recipe.get(f"data.ood_{group}")}
    found = dict.fromkeys(k[4:].rsplit(".", 2)[0] for k in cell.metrics if k.startswith("ood."))
    return [name for name in found if name not in groups]


def _ood_means(cell: CellResult) -> dict[str, float]:
    """Means over the OOD sets; none where a set has no number, so that rows stay comparable."""
    means = {}
    for score in ("entropy", "mutual_information", "max_probability", "energy"):
        addresses = [f"ood.{name}.{score}.auroc_ood" for name in _ood_sets(cell)]
        values = [v for a in addresses if (v := cell.metrics.get(a)) is not None]
        if values and len(values) == sum(a in cell.metrics for a in addresses):
            means[f"ood_auroc_{score}"] = statistics.fmean(values)
    return means


def _notes(cells: Sequence[CellResult], grids: Mapping[str, Grid], one_test: bool) -> list[str]:
    limit = cells[0].limit  # one for all cells of a table
    notes = [] if limit is None else [f"Limited to {limit} rows a split: not comparable with full runs."]
    if not one_test:
        swept = f"Rows have test samples of their own (--sweep {', '.join(sorted({key for c in cells for key in c.sweep}))})"
        notes.append(f"{swept}: their numbers do not compare, and no best one is marked.")
    rows = {c.recipe.get("data.limit") for c in cells if "data.limit" not in c.sweep} - {None}
    notes += [f"Trained on at most {rows.pop():,} rows (data.limit)."] if len(rows) == 1 else []
    steps = {c.row: c.training["steps"] for c in cells}
    used = [(c, g) for c in cells if (g := searched(c, grids))]
    if used:
        sizes = {len(g.points) for _, g in used}
        minutes = sum({g.method: g.seconds for _, g in used}.values()) / 60
        alone = any(g.members == 1 < c.members for c, g in used)  # as grids were until they took all members
        who = "one member" if alone else "all members"
        own = alone or all(c.sweep for c, _ in used)  # no row goes on with a run of the search
        beside = "beside the runs" if own else "with the first seed's runs at the chosen rates"
        notes.append(
            f"Learning rates: {'/'.join(map(str, sorted(sizes)))} points a method, all rates scaled together, lowest validation "
            f"NLL of {who}; the search took {minutes:.1f} minutes in all, {beside}."
        )
        if others := sorted({c.row for c in cells} - {c.row for c, _ in used}):
            notes.append(f"Learning rates not searched: {', '.join(others)}.")
        if any(c.sweep for c, _ in used):
            notes.append("The points of a sweep share the learning rates that their method's search found without it.")
    same_steps = not any(key.startswith(("train.", "data.")) for c in cells for key in c.sweep)
    if any(c.method == "snapshot" for c in cells):
        notes.append("The cycles of snapshot share the steps of one network; every other member takes all steps.")
    elif len(set(steps.values())) > 1 and same_steps:
        notes.append("Every member takes the same number of optimiser steps (deep_ensemble: one member after another).")
    return [*notes, *_unswept(cells)]


def _unswept(cells: Sequence[CellResult]) -> list[str]:
    """What rows that do not sweep a key have of it (they all have the same). Settings of methods are each row's own."""
    keys = dict.fromkeys(key for c in cells for key in c.sweep if not key.startswith("method."))
    notes = []
    for key in keys:
        rows = {c.row: c.recipe.get(key) for c in cells if key not in c.sweep}
        value = next(iter(rows.values()), None)
        notes += [f"{key} is {'null' if value is None else value} in what does not sweep it: {', '.join(rows)}."] if rows else []
    return notes


def _gaps(cells: Sequence[CellResult], diverged: Sequence[Diverged]) -> list[str]:
    """What has no number in the table, and why."""
    names = [f"{row_name(d.method, d.sweep)}, seed {d.seed}" for d in diverged]
    notes = [f"{name}, has no result: {d.message}" for name, d in zip(names, diverged, strict=True)]
    for key in ("accuracy", "nll"):
        lost = [c.label for c in cells if c.metrics.get(key, 0.0) is None]
        notes += [f"{key} is not finite, so that its row shows none: {'; '.join(lost)}."] if lost else []
    return notes


def _cost_notes(costs: Mapping[str, Any]) -> list[str]:
    noisy = ", ".join(costs.get("noisy", []))
    return [f"The machine was busy when the times of {noisy} were measured: they are rough."] if noisy else []


def _paired_notes(paired: Mapping[str, Any], rows: Sequence[BenchRow]) -> list[str]:
    """How to read the paired differences, which rows have none, and which have them of some seeds only."""
    keys = {key for row in paired.get("rows", {}).values() for key in row["differences"]}
    notes = list(paired.get("left_out", []))
    seeds = {row.name: set(row.seeds) for row in rows}
    for name, row in paired.get("rows", {}).items():
        both = seeds.get(name, set()) & seeds.get(paired["reference"], set())
        if missing := sorted(both - set(row.get("seeds", both))):
            left = f"Paired differences of {name} leave {_seeds(missing)} out"
            notes.append(f"{left}: neither its run nor readable samples of it are at hand.")
    ours = seeds.get(paired.get("reference", ""), set())
    fewer = [f"{name} ({_seeds(seeds[name] & ours)})" for name in paired.get("rows", {}) if name in seeds and ours - seeds[name]]
    notes += [f"Paired differences are of fewer seeds than {paired['reference']} has in: {', '.join(fewer)}."] if fewer else []
    if keys:
        notes.append(
            "The intervals of paired differences speak of other test samples for these trained networks, not of other training "
            "seeds, and are not corrected for the number of rows. A difference beyond its interval whose sign is not that of every "
            "seed is a tie (seeds disagree)."
        )
    if any(key.startswith("temperature.") for key in keys):
        notes.append(
            "Paired differences marked 'row temperature-scaled, reference not' compare the row after temperature scaling with "
            f"{paired['reference']} as it is, before temperature scaling."
        )
    return notes


def _seeds(seeds: Iterable[int]) -> str:
    numbers = sorted(seeds)
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
