"""Differences between the rows of a benchmark, paired on the test samples of the runs that are still at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sve_cli.benchmark import CellResult
from sve_cli.comparison import compare_ood, compare_seeds
from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.posthoc.state import Posthoc
from sve_cli.predictions import Predictions
from sve_cli.rundir import RunDir
from sve_cli.workflows.bench_cells import Study
from sve_cli.workflows.evaluate import slug

METRICS = ("accuracy", "nll", "ece_top1", "brier")
PREFERRED = ("sve", "single")  # the row that others are compared with: the first of these that is there
BOOTSTRAP = 1000


def paired_differences(study: Study, cells: Sequence[CellResult]) -> dict[str, Any] | None:
    """Every row minus the reference row, over the seeds both have; None where no two rows' runs are at hand.

    The reference is `sve`, else `single`, else the first row. `temperature.` differences compare the temperature-scaled
    other row with the plain reference: better calibration must hold against that too.
    """
    runs: dict[str, dict[int, RunDir]] = {}
    for cell in cells:
        if (run := RunDir(study.runs / cell.run)).complete:
            runs.setdefault(cell.row, {})[cell.seed] = run
    if len(runs) < 2:
        return None
    reference = next((name for name in PREFERRED if name in runs), next(iter(runs)))
    rows = {}
    for name, found in runs.items():
        seeds = sorted(found.keys() & runs[reference].keys())
        if name != reference and seeds:
            rows[name] = _rows(study, [runs[reference][s] for s in seeds], [found[s] for s in seeds]) | {"seeds": seeds}
    return {"reference": reference, "bootstrap": BOOTSTRAP, "rows": rows}


def _rows(study: Study, references: list[RunDir], others: list[RunDir]) -> dict[str, Any]:
    spec = study.load(study.methods[0], {}).recipe.evaluate
    ours, theirs = [_test(run) for run in references], [_test(run) for run in others]
    names = _known(METRICS)
    found = compare_seeds(ours, theirs, spec.aggregate, spec.bins, names, BOOTSTRAP, 0, spec.confidence)
    differences = {d.key: _short(d) for d in found}
    scaled = [_scaled(run, p) for run, p in zip(others, theirs, strict=True)]
    for d in compare_seeds(ours, scaled, spec.aggregate, spec.bins, names, BOOTSTRAP, 0, spec.confidence):
        differences[f"temperature.{d.key}"] = _short(d)
    for name in study.load(study.methods[0], {}).recipe.data.ood:
        left, right = (
            [(test, _load(run, name)) for run, test in zip(*side, strict=True)] for side in ((references, ours), (others, theirs))
        )
        for d in compare_ood(left, right, spec.aggregate, ("entropy",), BOOTSTRAP, 0, spec.confidence):
            differences[d.key] = _short(d)
    return {"differences": differences}


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


def _scaled(run: RunDir, predictions: Predictions) -> Predictions:
    path = run.evaluations()[-1] / "posthoc.json"
    temperature = Posthoc.from_json(path.read_text(encoding="utf-8")).temperature
    if temperature is None:
        raise SveError(f"'{run.path}' has no temperature.", "Set evaluate.temperature: true.")
    return temperature.apply(predictions)
