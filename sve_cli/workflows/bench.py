"""`sve bench`: methods trained alike on one task, each in its own process, and the table over them.

Resumable: a finished cell is one JSON file, an unfinished run goes on from its checkpoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from sve_cli.benchmark import (
    BenchTable,
    Cell,
    CellResult,
    Diverged,
    GridPoint,
    build_table,
    load_cells,
    load_diverged,
    load_grids,
    without_folders,
)
from sve_cli.errors import DivergenceError, SveError
from sve_cli.recipe import LoadedRecipe
from sve_cli.registry import RENDERERS
from sve_cli.rundir import LOCK, is_complete, only_process, write_json, write_text
from sve_cli.workflows.bench_cells import Study, flat, local_paths, model_name, rates_of, split_override
from sve_cli.workflows.bench_checks import (
    check_grid,
    check_place,
    check_reference,
    check_results,
    check_study,
    chosen_factor,
    is_done,
    searches,
    set_aside,
)
from sve_cli.workflows.bench_costs import measure_costs, read_costs
from sve_cli.workflows.bench_paired import paired_differences, read_paired
from sve_cli.workflows.bench_worker import Crew, Job
from sve_cli.workflows.session import Log

VIEWS = {"bench.md": "bench_md", "bench.html": "bench_html"}
KEPT = "What is finished is kept: the same command goes on from there, and --table shows it."


def bench(study: Study, log: Log, jobs: int = 1, costs: bool = True) -> BenchTable:
    """Make every cell of a study that is not there yet, then the table of all cells in its folder.

    Args:
        jobs: cells trained at once; the processor's threads are shared out among them.
        costs: measure FLOPs, step time and latency of the rows side by side afterwards.

    Raises:
        SveError: a recipe that cannot be trained, results of another study in the folder, a run that failed.
    """
    check_study(study, costs)  # everything that can be refused is refused before the first step
    with held(study.out), held(study.runs):
        return _bench(study, log, jobs, costs)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder of results or runs: a second benchmark there is refused.

    Raises:
        SveError: another process holds it, or nothing can be written there.
    """
    check_place(folder)
    with only_process(folder / LOCK, f"Another benchmark is at work in '{folder}'."):
        yield


def _bench(study: Study, log: Log, jobs: int, costs: bool) -> BenchTable:
    for override in study.overrides:
        if (owner := split_override(override)[0]) is not None and owner not in study.methods:
            log.warn(f"'{override}' changes nothing: {owner} is not in --methods.")
    check_results(study)
    read_costs(study.out)  # a damaged file too
    threads = max(torch.get_num_threads() // jobs, 1)  # as `sve train` has them, where one cell is trained at a time
    methods = searches(study)
    if points := [(method, factor) for method in methods for factor in _missing(study, method)]:
        log.say(f"Learning rates: {len(points)} points to try, {len(study.factors)} a method.")
        count, lock = _counted(len(points), 0), Lock()
        _together(jobs, Crew(log), [_searcher(study, *point, threads, log, count, lock) for point in points])
    searched = {method: check_grid(study, method) for method in methods}
    for method, grid in searched.items():
        best = grid.best
        log.say(f"Learning rates of {method}: × {best.factor:.3g} has the lowest validation NLL ({best.validation_nll:.4f}).")
    if edges := [method for method, grid in searched.items() if grid.at_edge]:
        log.say(f"At the edge of the grid: {', '.join(edges)}. --grid with further factors (1/3,1,3,9) tries them for all methods.")
    cells = study.cells()
    set_aside(study, log)
    _drop_losers(study, methods)
    todo = [cell for cell in cells if not is_done(study, cell)]
    log.say(f"{len(cells)} run{'s' if len(cells) > 1 else ''}: {len(cells) - len(todo)} done, {len(todo)} to train.")
    count = _counted(len(cells), len(cells) - len(todo))
    _together(jobs, Crew(log), [_trainer(study, cell, threads, log, count) for cell in todo])
    if costs:
        _costs(study, log)
    return write_table(study.out, study, log)


def _costs(study: Study, log: Log) -> None:
    """Measure the costs; where that fails, the trained rows have their table all the same."""
    try:
        measure_costs(study, log)
    except SveError as error:
        log.warn(f"No costs: {error.message} {error.hint}".rstrip())
    except (RuntimeError, MemoryError, OSError) as error:
        log.warn(f"No costs: {str(error) or type(error).__name__}")


def write_table(out: Path, study: Study | None = None, log: Log | None = None) -> BenchTable:
    """The table of everything in a benchmark's folder, written as bench.json, .md and .html.

    With the study's runs at hand, the paired differences are computed anew; else, or where some are damaged, those stored are used.

    Raises:
        SveError: no cells, cells that do not belong together, or a damaged file.
    """
    cells, diverged = load_cells(out), load_diverged(out)
    if not cells:
        why = " Every one diverged." if diverged else ""
        hint = "Lower the learning rates." if diverged else "Run the benchmark without --table first."
        raise SveError(f"There is no finished run in '{out}' to make a table of.{why}", hint)
    if study is not None:
        check_reference(study, cells)
    grids, costs = load_grids(out), read_costs(out)
    build_table(cells, grids, costs)  # cells that do not belong together are refused before anything is compared
    stored = read_paired(out)
    found = None if study is None else paired_differences(study, cells, log)
    warned = found["left_out"] if found else []
    unread = found.pop("unread") if found else []
    if unread and stored:  # what is stored may rest on what cannot be read any more: it is kept
        found, stored = None, {**stored, "left_out": list(dict.fromkeys([*stored.get("left_out", []), *unread]))}
    table = build_table(cells, grids, costs, found or stored, diverged)
    # All pages before the first file: where one cannot be made, those of the last time still belong together.
    pages = {"bench.json": table.to_json()} | {file: RENDERERS.resolve(view)(table) for file, view in VIEWS.items()}
    if found:
        write_json(out / "paired.json", found)
    for file, text in pages.items():
        write_text(out / file, text)
    if log is not None:
        for note in table.notes:
            if note not in warned:  # just now
                log.say(f"Note: {note}")
        log.say(f"Table: {out / 'bench.html'}")
    return table


def _counted(total: int, done: int) -> Iterator[str]:
    """'[3/12]', '[4/12]', …: which of how many begins."""
    return iter([f"[{number}/{total}]" for number in range(done + 1, total + 1)])


def _together(jobs: int, crew: Crew, work: Sequence[Callable[[Crew], None]]) -> None:
    """Run all of them, `jobs` at a time; the first failure stops the others."""
    pool = ThreadPoolExecutor(jobs)
    finished = False
    try:
        futures = [pool.submit(one, crew) for one in work]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        finished = True
    except SveError as error:
        raise SveError(error.message, f"{error.hint} {KEPT}".strip()) from error
    finally:  # after a failure or Ctrl-C nothing goes on in the background
        if not finished:
            crew.stop()
        pool.shutdown(cancel_futures=True)


def _missing(study: Study, method: str) -> list[float]:
    tried = {p.factor for p in check_grid(study, method).points}
    return [factor for factor in study.factors if factor not in tried]


def _drop_losers(study: Study, methods: Iterable[str]) -> None:
    """Remove the searched runs that no cell goes on with: each holds the weights of a whole ensemble."""
    used = {study.run_folder(c, study.cell_recipe(c, chosen_factor(study, c.method) or 1.0).recipe) for c in study.cells()}
    for method in methods:
        cell = study.grid_cell(method)
        searched = {study.run_folder(cell, study.cell_recipe(cell, factor).recipe) for factor in study.factors}
        for folder in searched - used:
            if folder.is_dir() and not is_complete(folder):
                shutil.rmtree(folder)


def _searcher(
    study: Study, method: str, factor: float, threads: int, log: Log, count: Iterator[str], lock: Lock
) -> Callable[[Crew], None]:
    """One point of a method's grid. The lock is for the grids' files, which points of the same method share."""

    def search(crew: Crew) -> None:
        label = f"{method}, learning rates × {factor:.3g}"
        log.say(f"{next(count)} Trying {label}")
        cell = study.grid_cell(method)
        loaded = study.cell_recipe(cell, factor)
        job = Job("search", loaded, study.run_folder(cell, loaded.recipe), study.limit, threads, study.command)
        try:
            found = crew.run(job, label)
            nll = found["validation_nll"] if math.isfinite(found["validation_nll"]) else None
            point = GridPoint(factor, nll, round(found["seconds"], 1))
        except DivergenceError as error:
            log.warn(error.message)
            point = GridPoint(factor, None, 0.0)
        with lock:
            known = check_grid(study, method)
            points = sorted([*known.points, point], key=lambda p: p.factor)  # the same file in whatever order they finish
            write_text(study.grid_path(method), replace(known, points=points).to_json())

    return search


def _trainer(study: Study, cell: Cell, threads: int, log: Log, count: Iterator[str]) -> Callable[[Crew], None]:
    def make(crew: Crew) -> None:
        factor = chosen_factor(study, cell.method)
        assert factor is not None
        loaded = study.cell_recipe(cell, factor)
        folder = study.run_folder(cell, loaded.recipe)
        number = next(count)
        log.say(f"{number} Training {cell.label}, in {folder}")
        try:
            found = crew.run(Job("train", loaded, folder, study.limit, threads, study.command), cell.label)
        except DivergenceError as error:  # it would again: the others go on, and the table names it
            said = without_folders(error.message.removeprefix(f"'{cell.label}' failed: "), local_paths(loaded.recipe))
            none = Diverged(cell.method, cell.seed, dict(cell.sweep), flat(loaded.recipe), study.limit, said)
            write_text(study.diverged_path(cell), none.to_json())
            log.warn(f"{error.message} It has no row in the table. {error.hint}")
            return
        result = _result(cell, study, loaded, factor, folder, found)
        write_text(study.result_path(cell), result.to_json())
        log.say(f"{number} {cell.label}: {_summary(result)}")
        build_table(load_cells(study.out), {}, None)  # a checkpoint or data changed meanwhile is found at once

    return make


def _summary(result: CellResult) -> str:
    accuracy, nll = (result.metrics[key] for key in ("accuracy", "nll"))
    return f"accuracy {100 * accuracy:.1f} %, NLL {nll:.3f}, trained in {result.training['seconds']:.0f} s."


def _result(cell: Cell, study: Study, loaded: LoadedRecipe, factor: float, folder: Path, found: dict[str, Any]) -> CellResult:
    """What is kept of a run: nothing in it names a folder of this machine."""
    recipe = loaded.recipe
    training = {k: v for k, v in found["training"].items() if k != "command"}
    facts = {k: found[k] for k in ("metrics", "parameters", "rows", "warnings", "environment", "sources")}
    return CellResult(
        task=loaded.name, recipe=flat(recipe), limit=study.limit, method=cell.method, members=recipe.method.members,
        seed=cell.seed, sweep=without_folders(cell.sweep), rates={"factor": factor, **rates_of(recipe)}, training=training,
        model=model_name(recipe), command=study.command, run=folder.name,
        **without_folders(facts, local_paths(recipe)),
    )  # fmt: skip
