"""Differences between the rows of a benchmark, paired on the test samples: from the runs that are at hand, and from what is kept
of the others beside the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.benchmark import BOTH_SCALED, Cell, CellResult, by_size, without_folders
from sve_cli.benchmark.values import check_paired
from sve_cli.comparison.paired import Settings, differences
from sve_cli.comparison.samples import TEST, SampleNumbers, SetNumbers, labels_of, numbers_of, paired_rows, view_of
from sve_cli.comparison.systems import auroc_statistic, compare_views, side_names
from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.metrics.aggregate import aggregate, ood_name, source_name
from sve_cli.ood.entropy import Entropy
from sve_cli.ood.joint import join
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS as REGISTERED
from sve_cli.rundir import RunDir, read_json
from sve_cli.workflows.bench_cells import Study, local_paths
from sve_cli.workflows.session import Log, Silent, run_recipe
from sve_cli.workflows.stored import slug, stored_aggregate, stored_posthoc

METRICS = ("accuracy", "nll", "ece_top1", "brier")
SCALED = METRICS[1:]  # a temperature leaves the accuracy of one network as it is, and that of an ensemble nearly so
PREFERRED = ("sve", "single")  # the row that others are compared with: the first of these that is there
BOOTSTRAP = 1000
SAMPLES = "samples"  # the folder of what is kept


def paired_differences(study: Study, cells: Sequence[CellResult], log: Log | None = None) -> dict[str, Any] | None:
    """Every row minus the reference row, over the seeds both have; None where no two rows have numbers of their samples.

    The reference is the study's; unless it names one, it is `sve` (in a sweep the row of the smallest value), else `single` (the
    same), else the first row.
    `temperature.` differences compare the temperature-scaled other row with the plain reference: better calibration must hold
    against that too. In `both_scaled.` differences each side has its own temperature. A row whose samples cannot be paired with the
    reference's (another test set) or read is left out with a warning, which `left_out` repeats; `unread`: those of them that are
    damaged.
    """
    rows, unread = _at_hand(study, cells)
    left_out = list(unread)
    for reason in left_out:
        (log or Silent()).warn(reason)
    if len(rows) < 2:
        return None
    ordered = sorted(cells, key=by_size)
    firsts = [name for method in PREFERRED for name in (method, *(cell.row for cell in ordered if cell.method == method))]
    reference = next((name for name in (study.reference, *firsts) if name in rows), next(iter(rows)))
    recipe = next(cell.recipe for cell in cells if cell.row == reference)
    bins, confidence = recipe["evaluate.bins"], recipe["evaluate.confidence"]
    settings = Settings("probs", bins, BOOTSTRAP, 0, confidence, 0)
    found = {}
    for name, theirs in rows.items():
        seeds = sorted(theirs.keys() & rows[reference].keys())
        if name == reference or not seeds:
            continue
        try:
            both = [rows[reference][s] for s in seeds], [theirs[s] for s in seeds]
            found[name] = {"differences": {k: _short(d) for k, d in _differences(*both, settings).items()}, "seeds": seeds}
        except SveError as error:
            left_out.append(f"{name} (B) is not compared with {reference} (A): {error.message}")
            (log or Silent()).warn(left_out[-1])
    return {"reference": reference, "bootstrap": BOOTSTRAP, "rows": found, "left_out": left_out, "unread": unread}


def _at_hand(study: Study, cells: Sequence[CellResult]) -> tuple[dict[str, dict[int, SampleNumbers]], list[str]]:
    """The numbers of each row's seeds, and why some that are there cannot be read."""
    rows: dict[str, dict[int, SampleNumbers]] = {}
    damaged = []
    for cell in cells:
        try:
            if (numbers := samples_of(study, cell)) is not None:
                rows.setdefault(cell.row, {})[cell.seed] = numbers
        except SveError as error:
            damaged.append(f"{cell.label}, is left out of the paired differences: {error.message}")
    return rows, damaged


def samples_of(study: Study, cell: CellResult) -> SampleNumbers | None:
    """The numbers of a cell's samples as they are kept, and where they are not, of its run, to be kept from then on; else None.

    Raises:
        SveError: the run's predictions or the kept numbers are damaged, or give another accuracy or NLL than the cell says.
    """
    result = study.result_path(Cell(cell.method, cell.seed, cell.sweep))
    path = result.parent / SAMPLES / f"{result.stem}.parquet"
    run = RunDir(study.runs / cell.run)
    try:
        kept = SampleNumbers.load(path) if path.is_file() else None
    except SveError:
        if not run.complete:
            raise
        kept = None
    if kept is not None and kept.run != cell.run:  # of other settings
        kept = None
    if kept is not None and _agree(kept, cell):
        return kept
    if run.complete:
        if _agree(numbers := _measured(run), cell):
            numbers.save(path)
            return numbers
    elif kept is None:
        return None
    place = run.path if run.complete else path
    raise SveError(f"'{place}' is not what '{result}' was made of.", "Remove one of them: what is missing is made again.")


def _agree(numbers: SampleNumbers, cell: CellResult) -> bool:
    """Whether the samples have the accuracy and the NLL of the result: a run of the same settings may have been trained anew."""
    plain = numbers.sets[TEST].plain
    means = {"accuracy": np.nanmean(plain["correct"], dtype=np.float64), "nll": -np.nanmean(plain["log_label"], dtype=np.float64)}
    known = {key: value for key in means if (value := cell.metrics[key]) is not None}  # None: not finite
    return all(math.isclose(means[key], value, rel_tol=1e-4, abs_tol=1e-6) for key, value in known.items())


def _measured(run: RunDir) -> SampleNumbers:
    """The numbers of the evaluation that a run ended with, averaged as it did."""
    recipe, evaluation = run_recipe(run), run.evaluations()[-1]
    local, how = local_paths(recipe), stored_aggregate(evaluation)
    test = _load(evaluation, TEST)
    oods = {name: _load(evaluation, name) for name in recipe.data.ood}
    # One set after another, so that entropies are divided by ln K everywhere or nowhere.
    entropy_N = Entropy().score(reduce(join, oods.values(), test), how).astype(np.float32)
    entropies = np.split(entropy_N, np.cumsum([p.n_samples for p in (test, *oods.values())]))
    temperature = stored_posthoc(evaluation).temperature
    scaled = None if temperature is None else numbers_of(aggregate(temperature.apply(test), how))
    sets = {
        TEST: SetNumbers(source_name(test), test.ids_N, labels_of(test), entropies[0], numbers_of(aggregate(test, how)), scaled)
    }
    for (name, ood), its_N in zip(oods.items(), entropies[1:], strict=False):
        source = without_folders(source_name(ood), local)
        sets[without_folders(f"ood {name}", local)] = SetNumbers(source, ood.ids_N, [None] * ood.n_samples, its_N, {})
    return SampleNumbers(run.path.name, sets)


def _differences(references: list[SampleNumbers], others: list[SampleNumbers], settings: Settings) -> dict[str, Difference]:
    """Others minus references by key: plain, with the others' temperature, with one on both sides, and the AUROC of OOD sets."""
    systems, names = [*references, *others], side_names(references, others)
    tests = [system.sets[TEST] for system in systems]
    rows = paired_rows(tests, names)
    metrics = {name: REGISTERED.resolve(name) for name in _known(METRICS)}
    plain = [view_of(found.plain, index) for found, index in zip(tests, rows, strict=True)]
    if not plain[0].labelled().n:
        raise SveError("There is no metric that both sides have.", "Compare predictions with labels.")
    ours, theirs = plain[: len(references)], plain[len(references) :]
    found = {d.key: d for d in compare_views(ours, theirs, metrics, settings)}
    metrics = {name: REGISTERED.resolve(name) for name in _known(SCALED)}
    scaled = [None if test.scaled is None else view_of(test.scaled, index) for test, index in zip(tests, rows, strict=True)]
    ours_scaled = [view for view in scaled[: len(references)] if view is not None]
    theirs_scaled = [view for view in scaled[len(references) :] if view is not None]
    if len(theirs_scaled) == len(others):
        found |= {f"temperature.{d.key}": d for d in compare_views(ours, theirs_scaled, metrics, settings)}
        if len(ours_scaled) == len(references):
            found |= {f"{BOTH_SCALED}.{d.key}": d for d in compare_views(ours_scaled, theirs_scaled, metrics, settings)}
    for name in systems[0].sets:
        if name == TEST or not all(name in system.sets for system in systems):
            continue  # swept
        oods = [system.sets[name] for system in systems]
        scores = [
            np.concatenate([test.entropy_N[index], ood.entropy_N[there]])
            for test, index, ood, there in zip(tests, rows, oods, paired_rows(oods, names), strict=True)
        ]
        n = len(rows[0])
        statistic = auroc_statistic(ood_name(oods[0].source), Entropy(), scores[: len(references)], scores[len(references) :], n)
        [difference] = differences([statistic], [n, len(scores[0]) - n], settings)
        found[difference.key] = difference
    return found


def _known(names: Sequence[str]) -> list[str]:
    return [next(k for k in REGISTERED if k == name or k.startswith(f"{name}_w")) for name in names]


def _short(difference: Difference) -> dict[str, Any]:
    kept = ("reference", "other", "difference", "low", "high", "n", "by_seed")
    return {k: v for k, v in asdict(difference).items() if k in kept} | {"verdict": difference.verdict}


def _load(evaluation: Path, name: str) -> Predictions:
    return Predictions.load(evaluation / "predictions" / slug(name))


def read_paired(out: Path) -> dict[str, Any] | None:
    """The paired differences stored in a benchmark's folder; None: there are none.

    Raises:
        SveError: paired.json is damaged.
    """
    path = out / "paired.json"
    again = "Remove it: the differences are measured again where the runs are at hand, and left out where they are not."
    if not path.is_file():
        return None
    document = read_json(path, again)
    if key := check_paired(document):
        raise SveError(f"'{path}' is damaged: {key} is missing or is not what it should be.", again)
    return dict(document)
