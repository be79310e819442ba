"""What `sve bench` refuses before it trains anything: recipes, folders and earlier results that do not fit."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sve_cli.benchmark import (
    EARLIER,
    PRECISION,
    Cell,
    CellResult,
    Diverged,
    Grid,
    different_task,
    different_task_keys,
    load_cells,
    load_diverged,
    load_grids,
    row_name,
    without_folders,
)
from sve_cli.data.load import HELD_OUT
from sve_cli.data.sources import open_source, split_name
from sve_cli.errors import DataError, SveError
from sve_cli.recipe import Recipe
from sve_cli.registry import HEADS_ALONE, ONE_NETWORK
from sve_cli.workflows.bench_builds import check_builds, trains_nothing
from sve_cli.workflows.bench_cells import RATES, Study, file_stem, flat, local_paths, same_settings, split_override
from sve_cli.workflows.session import Log


def check_study(study: Study, costs: bool = False) -> None:
    """Refuse a study that could not be finished, or whose rows would not belong in one table.

    Args:
        costs: they will be measured too, so that what they are relative to must have a recipe.

    Raises:
        SveError: a recipe that cannot be loaded, an override for an unknown method, rows or sets of one name, members of a
            method that is one network, settings that only some methods have, a method that cannot be built.
    """
    for override in study.overrides:
        split_override(override)
    rows = Counter(file_stem(m, p) for p in study.points() for m in study.methods)
    if len(study.factors) > 1 and (rates := [key for key in study.sweep if key in RATES]):
        raise SveError(
            f"--sweep {rates[0]} and a learning-rate grid do not go together: the grid would change the swept rates.",
            "Write --grid 1, or leave the rate out of --sweep.",
        )
    stored = load_cells(study.out)
    check_reference(study, [*study.cells(), *stored])
    if twice := [stem for stem, n in rows.items() if n > 1]:
        raise SveError(f"Two rows would be called '{twice[0]}'.", "Give the swept files or folders different names.")
    first: Recipe | None = None
    for cell in study.cells():
        recipe = study.cell_recipe(cell, 1.0).recipe
        _check_recipe(cell, recipe)
        first = first or recipe
        if differing := different_task_keys(flat(first), flat(recipe), study.sweep):
            raise SveError(
                f"'{cell.row}' would be trained with another {differing[0]} than '{study.cells()[0].row}'.",
                "Rows of one table may differ in method.*, their learning rates and weight decay, and in what --sweep names.",
            )
    if costs:
        study.cost_reference()
    missing = [(cell, study.cell_recipe(cell, 1.0).recipe) for cell in _to_make(study)]
    _check_sources(missing)
    check_builds(missing, stored, PRECISION not in study.sweep)


def by_default(study: Study, log: Log) -> Study:
    """A study whose methods nobody chose, without those that would train nothing here as the task's heads are frozen.

    Raises:
        SveError: the recipe, an override or a sweep value is wrong.
    """
    alone = [method for method in study.methods if method in HEADS_ALONE]
    idle = [method for method in alone if any(trains_nothing(study.load(method, point).recipe) for point in study.points())]
    for method in idle:
        log.say(f"{method} is left out: the task's head is frozen, so that it would train nothing. task.head: new trains one.")
    return replace(study, methods=tuple(method for method in study.methods if method not in idle))


def _check_sources(rows: Sequence[tuple[Cell, Recipe]]) -> None:
    """Refuse rows whose data set, or one for OOD detection, is not there. Each is looked for once; sets of the hub are fetched."""
    seen: set[tuple[str, str | None, str | None]] = set()
    for cell, recipe in rows:
        data = recipe.data
        others = [split_name(name)[0] for name in data.ood if name != HELD_OUT]
        for place in ((data.name, data.config, data.revision), *((name, None, None) for name in others if name != data.name)):
            if place in seen:
                continue
            seen.add(place)
            try:
                open_source(place[0], data, *place[1:])
            except DataError as error:
                raise SveError(f"'{cell.row}' cannot be trained: {error.message}", error.hint) from error


def _to_make(study: Study) -> list[Cell]:
    """What is still to be trained, searches first."""
    grids = [study.grid_cell(method) for method in searches(study) if chosen_factor(study, method) is None]
    return [*grids, *(cell for cell in study.cells() if study.kept(cell) is None)]


def check_reference(study: Study, cells: Sequence[Cell | CellResult]) -> None:
    """Refuse a reference that is none of the table's rows.

    Raises:
        SveError: it is none.
    """
    known = sorted({cell.row for cell in cells})
    if study.reference is not None and study.reference not in known:
        raise SveError(f"--reference '{study.reference}' is no row of this table.", f"Its rows are: {'; '.join(known)}.")


def _check_recipe(cell: Cell, recipe: Recipe) -> None:
    name, members = recipe.method.name, recipe.method.members
    if name in ONE_NETWORK and members != 1:
        raise SveError(
            f"{name} is one network, but method.members is {members}.",
            "Leave it out of --methods, or give method.members to the others only, as METHOD:method.members=4.",
        )
    sets = Counter(without_folders(recipe.data.ood, local_paths(recipe)))
    if twice := [called for called, n in sets.items() if n > 1]:
        raise SveError(f"Two sets of data.ood are called '{twice[0]}'.", "Name each once, and give files different names.")


def check_results(study: Study) -> None:
    """Refuse a folder with results that this study would not repeat, or that do not belong in a table with its own.

    Raises:
        SveError: results or grids of other settings, or damaged ones.
    """
    first = study.cells()[0]
    recipe = flat(study.cell_recipe(first, 1.0).recipe)
    for stored in load_cells(study.out):
        probe = replace(stored, recipe=recipe, sweep=dict.fromkeys([*stored.sweep, *study.sweep], ""), limit=study.limit)
        if differing := different_task(stored, probe):
            raise SveError(
                f"'{study.out}' holds results with another {differing[0]} ({stored.row}).",
                "Choose another folder with --out, or repeat the settings it was made with.",
            )
    load_grids(study.out)
    for method in searches(study):
        check_grid(study, method)
    for cell in study.cells():
        is_done(study, cell)


def check_grid(study: Study, method: str) -> Grid:
    """The grid of a method as far as it was searched.

    Raises:
        SveError: it was searched with other settings.
    """
    path, recipe = study.grid_path(method), study.cell_recipe(study.grid_cell(method), 1.0).recipe
    known = Grid.load(path) if path.is_file() else Grid(method, recipe.method.members, flat(recipe), [], study.limit)
    if differing := [*same_settings(known.recipe, recipe), *(["--limit"] if known.limit != study.limit else [])]:
        raise SveError(
            f"'{path}' was made with another {differing[0]} than is asked for now.",
            "Remove it to search again, or choose another --out.",
        )
    return known


def is_done(study: Study, cell: Cell) -> bool:
    """Whether a cell's result is there, or that it has none because it diverged.

    Its learning rates are compared once they have been searched. One that was trained before a wider search chose others is not
    done, see `set_aside`.

    Raises:
        SveError: the result was made with other settings.
    """
    if (path := study.kept(cell)) is None:
        return False
    factor = chosen_factor(study, cell.method)
    stored = Diverged.load(path) if path == study.diverged_path(cell) else CellResult.load(path)
    found = same_settings(stored.recipe, study.cell_recipe(cell, factor or 1.0).recipe)
    found += ["--limit"] if stored.limit != study.limit else []
    differing = [k for k in found if factor is not None or k not in RATES]
    if differing and _earlier_factor(study, cell, stored) is not None:
        return False
    if differing:
        raise SveError(
            f"'{path}' was made with another {differing[0]} than is asked for now.",
            "Remove it to train it again, or choose another --out.",
        )
    return True


def set_aside(study: Study, log: Log) -> None:
    """Move results away whose method's search has since been widened and chose other learning rates, whatever their seed."""
    rows = {cell.row: cell for cell in study.cells()}
    kept: list[CellResult | Diverged] = [*load_cells(study.out), *load_diverged(study.out)]
    for stored in kept:
        if (own := rows.get(row_name(stored.method, stored.sweep))) is None:
            continue  # not of this study, which would not train it anew
        cell = replace(own, seed=stored.seed)
        if (factor := _earlier_factor(study, cell, stored)) is None:
            continue
        path = study.result_path(cell) if isinstance(stored, CellResult) else study.diverged_path(cell)
        (study.out / EARLIER).mkdir(exist_ok=True)
        path.replace(study.out / EARLIER / f"{path.stem}-x{factor:.3g}.json")
        number = cell.seed - study.cells()[0].seed + 1
        again = f" --seeds {number} trains it anew." if number > study.seeds else ""
        log.say(
            f"{cell.label} was trained with × {factor:.3g} of the learning rates, and the grid chose × "
            f"{chosen_factor(study, cell.method):.3g} since: it is kept in {study.out / EARLIER}.{again}"
        )


def _earlier_factor(study: Study, cell: Cell, stored: CellResult | Diverged) -> float | None:
    """The grid point that a stored result was trained with, where it is not the one that the whole grid chooses."""
    chosen = chosen_factor(study, cell.method)
    if chosen is None or len(study.factors) == 1 or stored.limit != study.limit:
        return None
    others = [p.factor for p in Grid.load(study.grid_path(cell.method)).points if p.factor != chosen]
    return next((f for f in others if not same_settings(stored.recipe, study.cell_recipe(cell, f).recipe)), None)


def searches(study: Study) -> list[str]:
    """The methods whose learning rates are searched."""
    return list(study.methods) if len(study.factors) > 1 else []


def chosen_factor(study: Study, method: str) -> float | None:
    """The factor on a method's learning rates; None as long as its search is not finished.

    Raises:
        SveError: it diverged at every point.
    """
    if len(study.factors) == 1:
        return 1.0
    path = study.grid_path(method)
    grid = Grid.load(path) if path.is_file() else None
    if grid is None or not {*study.factors} <= {p.factor for p in grid.points}:
        return None
    return grid.best.factor


def check_place(folder: Path) -> None:
    """Make a folder and try to write in it.

    Raises:
        SveError: a file is in the way, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SveError(f"Cannot write in '{folder}' ({error.strerror}).", "Choose another folder with --out.") from error
