"""`sve bench`: methods trained alike on one task, each in its own process, and the table over them.

Resumable: a finished cell is one JSON file, an unfinished run goes on from its checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from sve_cli.benchmark import (
    BenchTable,
    Cell,
    CellResult,
    Grid,
    GridPoint,
    build_table,
    different_task,
    load_cells,
    load_grids,
)
from sve_cli.errors import DivergenceError, SveError
from sve_cli.recipe import LoadedRecipe
from sve_cli.registry import RENDERERS
from sve_cli.rundir import read_json, write_json, write_text
from sve_cli.workflows.bench_cells import Study, flat, model_name, rates_of, same_settings
from sve_cli.workflows.bench_costs import measure_costs
from sve_cli.workflows.bench_worker import Job, run_job, stop_jobs
from sve_cli.workflows.session import Log

VIEWS = {"bench.md": "bench_md", "bench.html": "bench_html"}


def bench(study: Study, log: Log, jobs: int = 1, costs: bool = True) -> BenchTable:
    """Make every cell of a study that is not there yet, then the table of all cells in its folder.

    Args:
        jobs: cells trained at once; the processor's threads are shared out among them.
        costs: measure FLOPs, step time and latency of the rows side by side afterwards.

    Raises:
        SveError: a recipe that cannot be trained, results of another study in the folder, a run that failed.
    """
    cells = study.cells()
    for cell in cells:  # everything that can be refused is refused before the first step
        study.cell_recipe(cell, 1.0)
    _check_folder(study)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    if len(study.factors) > 1:
        searched = list(dict.fromkeys(study.searched_as(method) for method in study.methods))
        _together(jobs, [_searcher(study, method, threads, log) for method in searched])
    todo = [cell for cell in cells if not _done(study, cell)]
    log.say(f"{len(cells)} runs: {len(cells) - len(todo)} done, {len(todo)} to train.")
    _together(jobs, [_trainer(study, cell, threads, log) for cell in todo])
    if costs:
        measure_costs(study, log)
    return write_table(study.out, study, log)


def write_table(out: Path, study: Study | None = None, log: Log | None = None) -> BenchTable:
    """The table of everything in a benchmark's folder, written as bench.json, .md and .html.

    With the study's runs at hand, the paired differences are computed anew; else those stored are used.
    """
    from sve_cli.workflows.bench_paired import paired_differences

    cells = load_cells(out)
    stored = out / "paired.json"
    if study is not None and (found := paired_differences(study, cells)):
        write_json(stored, found)
    costs = read_json(out / "costs.json") if (out / "costs.json").is_file() else None
    table = build_table(cells, load_grids(out), costs, read_json(stored) if stored.is_file() else None)
    write_text(out / "bench.json", table.to_json())
    for file, view in VIEWS.items():
        write_text(out / file, RENDERERS.resolve(view)(table))
    if log is not None:
        log.say(f"Table: {out / 'bench.html'}")
    return table


def _check_folder(study: Study) -> None:
    """Refuse results of another task in the folder, before anything is trained."""
    cells = load_cells(study.out) if study.out.is_dir() else []
    first = study.cells()[0]
    recipe = study.cell_recipe(first, 1.0).recipe
    for cell in cells:
        probe = replace(cell, recipe=flat(recipe), sweep={k: "" for k in (*cell.sweep, *study.sweep)}, limit=study.limit)
        if differing := different_task(cell, probe):
            raise SveError(
                f"'{study.out}' holds results with another {differing[0]} ({cell.row}).",
                "Choose another folder with --out, or repeat the settings it was made with.",
            )


def _done(study: Study, cell: Cell) -> bool:
    path = study.result_path(cell)
    if not path.is_file():
        return False
    wanted = study.cell_recipe(cell, _factor(study, cell.method)).recipe
    if differing := same_settings(CellResult.load(path).recipe, wanted):
        raise SveError(
            f"'{path}' was made with another {differing[0]} than is asked for now.",
            "Remove it to train it again, or choose another --out.",
        )
    return True


def _factor(study: Study, method: str) -> float:
    path = study.grid_path(study.searched_as(method))
    return Grid.load(path).best.factor if len(study.factors) > 1 and path.is_file() else 1.0


def _together(jobs: int, work: Sequence[Callable[[], None]]) -> None:
    """Run all of them, `jobs` at a time; the first failure stops what has not begun."""
    if jobs == 1:
        for one in work:
            one()
        return
    pool = ThreadPoolExecutor(jobs)
    futures = [pool.submit(one) for one in work]
    finished = False
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        finished = True
    finally:  # after a failure or Ctrl-C nothing goes on in the background
        pool.shutdown(wait=False, cancel_futures=True)
        if not finished:
            stop_jobs()


def _searcher(study: Study, method: str, threads: int, log: Log) -> Callable[[], None]:
    def search() -> None:
        path = study.grid_path(method)
        recipe = study.grid_recipe(method, 1.0).recipe
        known = Grid.load(path) if path.is_file() else Grid(method, recipe.method.members, flat(recipe), [])
        if differing := same_settings(known.recipe, recipe):
            raise SveError(f"'{path}' was made with another {differing[0]}.", "Remove it to search again, or choose another --out.")
        points = list(known.points)
        for factor in study.factors:
            if any(p.factor == factor for p in points):
                continue
            log.say(f"Learning rates of {method}: × {factor:g}")
            job = Job("search", study.grid_recipe(method, factor), study.out, study.limit, threads, study.command)
            try:
                found = run_job(job, log, f"{method}, × {factor:g}")
                points.append(GridPoint(factor, found["validation_nll"], round(found["seconds"], 1)))
            except DivergenceError:
                points.append(GridPoint(factor, None, 0.0))
            known = replace(known, points=points)
            write_text(path, known.to_json())
        best = known.best
        log.say(f"Learning rates of {method}: × {best.factor:g} has the lowest validation NLL ({best.validation_nll:.4f}).")

    return search


def _trainer(study: Study, cell: Cell, threads: int, log: Log) -> Callable[[], None]:
    def make() -> None:
        factor = _factor(study, cell.method)
        loaded = study.cell_recipe(cell, factor)
        folder = study.run_folder(cell, loaded.recipe)
        log.say(f"Training {cell.label} in {folder}")
        found = run_job(Job("train", loaded, folder, study.limit, threads, study.command), log, cell.label)
        write_text(study.result_path(cell), _result(cell, study, loaded, factor, folder, found).to_json())

    return make


def _result(cell: Cell, study: Study, loaded: LoadedRecipe, factor: float, folder: Path, found: dict[str, Any]) -> CellResult:
    recipe = loaded.recipe
    return CellResult(
        task=loaded.name, recipe=flat(recipe), limit=study.limit, method=cell.method, members=recipe.method.members,
        seed=cell.seed, sweep=dict(cell.sweep), rates={"factor": factor, **rates_of(recipe)}, metrics=found["metrics"],
        parameters=found["parameters"], training={k: v for k, v in found["training"].items() if k != "command"},
        rows=found["rows"], warnings=found["warnings"], model=model_name(recipe), command=study.command,
        environment=found["environment"], run=folder.name,
    )  # fmt: skip
