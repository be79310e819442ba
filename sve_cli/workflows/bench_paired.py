"""Differences between the rows of a benchmark, paired on the test samples of the runs that are still at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sve_cli.benchmark import CellResult, without_folders
from sve_cli.benchmark.values import check_paired
from sve_cli.comparison import compare_ood, compare_seeds
from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.predictions import Predictions
from sve_cli.rundir import RunDir, read_json
from sve_cli.workflows.bench_cells import Study, local_paths
from sve_cli.workflows.compare import ways_of
from sve_cli.workflows.session import Log, Silent, run_recipe
from sve_cli.workflows.stored import slug, stored_aggregate, stored_posthoc

METRICS = ("accuracy", "nll", "ece_top1", "brier")
PREFERRED = ("sve", "single")  # the row that others are compared with: the first of these that is there
BOOTSTRAP = 1000


def paired_differences(study: Study, cells: Sequence[CellResult], log: Log | None = None) -> dict[str, Any] | None:
    """Every row minus the reference row, over the seeds both have; None where no two rows' runs are at hand.

    The reference is the study's; unless it names one, it is `sve` (in a sweep its first row), else `single`, else the first row.
    `temperature.` differences compare the temperature-scaled other row with the plain reference: better calibration must hold
    against that too. A row whose samples cannot be paired with the reference's (other classes, another test set) is left out
    with a warning, which `left_out` repeats.
    """
    runs: dict[str, dict[int, RunDir]] = {}
    for cell in cells:
        if (run := RunDir(study.runs / cell.run)).complete:
            runs.setdefault(cell.row, {})[cell.seed] = run
    if len(runs) < 2:
        return None
    firsts = [cell.row for method in PREFERRED for cell in cells if cell.method == method]
    reference = next((name for name in (study.reference, *PREFERRED, *firsts) if name in runs), next(iter(runs)))
    rows, left_out = {}, []
    for name, found in runs.items():
        seeds = sorted(found.keys() & runs[reference].keys())
        if name == reference or not seeds:
            continue
        try:
            rows[name] = _rows([runs[reference][s] for s in seeds], [found[s] for s in seeds]) | {"seeds": seeds}
        except SveError as error:
            left_out.append(f"{name} (B) is not compared with {reference} (A): {error.message}")
            (log or Silent()).warn(left_out[-1])
    return {"reference": reference, "bootstrap": BOOTSTRAP, "rows": rows, "left_out": left_out}


def _rows(references: list[RunDir], others: list[RunDir]) -> dict[str, Any]:
    recipes = [run_recipe(run) for run in (*references, *others)]
    how = _ways(references, others)
    spec, local = recipes[0].evaluate, [path for recipe in recipes for path in local_paths(recipe)]
    ours, theirs = [_test(run) for run in references], [_test(run) for run in others]
    names = _known(METRICS)
    found = compare_seeds(ours, theirs, how, spec.bins, names, BOOTSTRAP, 0, spec.confidence)
    differences = {d.key: _short(d) for d in found}
    scaled = [_scaled(run, p) for run, p in zip(others, theirs, strict=True)]
    if all(p is not None for p in scaled):
        given = [p for p in scaled if p is not None]
        for d in compare_seeds(ours, given, how, spec.bins, names, BOOTSTRAP, 0, spec.confidence):
            differences[f"temperature.{d.key}"] = _short(d)
    for name in recipes[0].data.ood:
        if not all(name in recipe.data.ood for recipe in recipes):
            continue  # swept
        left, right = (
            [(test, _load(run, name)) for run, test in zip(*side, strict=True)] for side in ((references, ours), (others, theirs))
        )
        for d in compare_ood(left, right, how, ("entropy",), BOOTSTRAP, 0, spec.confidence):
            differences[without_folders(d.key, local)] = _short(d)
    return {"differences": differences}


def _ways(references: list[RunDir], others: list[RunDir]) -> tuple[list[str], list[str]]:
    """How the members of each run are averaged, as `sve compare` does it: every seed with its own fitted weights."""
    ours, theirs = ([stored_aggregate(run.evaluations()[-1]) for run in side] for side in (references, others))
    return ours, [ways_of(ours[0], way)[1] for way in theirs]


def _known(names: Sequence[str]) -> list[str]:
    from sve_cli.registry import METRICS as REGISTERED

    return [next(k for k in REGISTERED if k == name or k.startswith(f"{name}_w")) for name in names]


def _short(difference: Difference) -> dict[str, Any]:
    kept = ("reference", "other", "difference", "low", "high", "n")
    return {k: v for k, v in asdict(difference).items() if k in kept} | {"verdict": difference.verdict}


def _load(run: RunDir, name: str) -> Predictions:
    return Predictions.load(run.evaluations()[-1] / "predictions" / slug(name))


def _test(run: RunDir) -> Predictions:
    return _load(run, "test")


def _scaled(run: RunDir, predictions: Predictions) -> Predictions | None:
    """The predictions at the run's temperature; None where it has none."""
    temperature = stored_posthoc(run.evaluations()[-1]).temperature
    return None if temperature is None else temperature.apply(predictions)


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
