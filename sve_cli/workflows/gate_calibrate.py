"""Repeated evaluations of the same thing -> how much slack each metric needs, and a gate file with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sve_cli import gate as gates
from sve_cli.errors import SveError
from sve_cli.gate import GateFile, GateSettings, Learned
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.recipe import EvaluateSpec
from sve_cli.rundir import RunDir, write_text
from sve_cli.workflows.bench_cells import flat
from sve_cli.workflows.evaluate import evaluate
from sve_cli.workflows.gate_sides import Judged, compared_by_default, judge_predictions, judge_run, same_classes
from sve_cli.workflows.gate_slices import worst_addresses
from sve_cli.workflows.session import Log, run_recipe

NAMED = 3  # keys at most in one sentence
# What may differ between repetitions of one training: chance, how the same numbers are computed, and what comes after it.
_CHANCE = re.compile(
    r"(data\.)?seed|evaluate\..*|data\.(ood.*|slices|splits\.test)"
    r"|train\.(precision|member_execution|accumulation|save_memory|prefix_cache_mb|checkpoint_minutes)"
)


@dataclass(frozen=True)
class Repeats:
    """What is learned from.

    Attributes:
        paths: runs and predictions files; one run is enough with `batch_sizes`.
        batch_sizes: at which each run is predicted again, besides its own.
        changes: keys of the `evaluate` section.
        prob_columns: of predictions files.
    """

    paths: Sequence[Path]
    batch_sizes: Sequence[int] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    prob_columns: Sequence[str] = ()


@dataclass(frozen=True)
class Calibration:
    """What was learned.

    Attributes:
        names: of the evaluations.
        runs: how many runs or files they are of.
        alike: sentences on runs or files that give the same numbers; at another batch size of one run that is as it should be.
    """

    names: list[str]
    runs: int
    learned: list[Learned]
    quantile: float
    alike: list[str]
    notes: list[str]


def calibrate(repeats: Repeats, metrics: Sequence[str], quantile: float, file: GateFile | None, log: Log) -> Calibration:
    """Learn the slack of each metric.

    Args:
        metrics: report addresses; none: those that `file` compares, else accuracy, NLL, Brier and ECE.
        file: the gate file that is to be updated.

    Raises:
        SveError: fewer than two evaluations, other samples or labels, a metric that is missing.
    """
    if len(repeats.paths) < 2 and not repeats.batch_sizes:
        raise SveError("One evaluation has nothing to differ from.", "Name two or more, or use --batch-sizes with a run.")
    of_paths = [_open(path, repeats, log) for path in repeats.paths]
    sides = [side for found in of_paths for side in found]
    own = [k for k, found in enumerate(of_paths) for _ in found]
    for side in sides[1:]:
        _same_samples(sides[0], side)
    tables = [side.report.addresses() for side in sides]
    keys = list(metrics) or [key for key, gate in (file.gates if file else {}).items() if gate.compares]
    keys = keys or compared_by_default(sides[0])
    worst = {key: worst_addresses(sides[0].report, key) for key in keys if key not in tables[0]}
    learned = gates.learn_all(tables, keys, quantile, file.gates if file else {}, worst)
    alike = [
        f"'{side.name}' gives the same numbers as '{sides[i].name}' in every metric: is it another evaluation?"
        for k, side in enumerate(sides)
        for i in range(k)
        if own[i] != own[k] and all(one.values[i] == one.values[k] for one in learned)
    ]
    notes = [*_unlike(repeats.paths), *dict.fromkeys(note for side in sides for note in side.notes)]
    return Calibration([side.name for side in sides], len(repeats.paths), learned, quantile, alike, notes)


def write_gates(found: Calibration, file: Path | None, out: Path) -> None:
    """Write what was learned: into the text of `file`, else into a new one.

    Raises:
        SveError: the file cannot be edited or written.
    """
    slacks = {one.key: one.slack for one in found.learned}
    if file is not None:
        text = gates.with_slacks(file.read_text(encoding="utf-8"), slacks, str(file))
    else:
        names = ", ".join(found.names)
        sure, _ = gates.how_sure(len(found.names), found.quantile, found.runs)
        told = ["Slack learned by sve gate calibrate from " + names + ".", sure]
        text = gates.new_gate_file(slacks, told)
    write_text(out, text)


def check_out(out: Path, gate: Path | None, overwrite: bool) -> None:
    """Refuse to overwrite a gate file unasked, before any work.

    Args:
        gate: the file whose text is kept but for the slacks.

    Raises:
        SveError: something is there.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        does = "puts the slacks into it and keeps the rest" if out == gate else "replaces it"
        raise SveError(f"'{out}' exists already.", f"--overwrite {does}; or name another file with --out.")


def _open(path: Path, repeats: Repeats, log: Log) -> list[Judged]:
    """The evaluations of a run, one for each batch size, or a predictions file."""
    if not path.is_dir():
        if repeats.batch_sizes:
            raise SveError(f"'{path}' is no run, so it cannot be predicted at another batch size.", "Leave --batch-sizes out.")
        spec = EvaluateSpec(**{"bootstrap": 0, **repeats.changes})
        judged = judge_predictions(path, spec, prob_columns=repeats.prob_columns)
        return [replace(judged, name=path.name)]
    run = RunDir.open(path)
    own = run_recipe(run).evaluate
    found = []
    for size in dict.fromkeys([own.batch_size, *repeats.batch_sizes]):
        changes = {**repeats.changes, "batch_size": size}
        folder, report = evaluate(run, log, changes=changes)
        judged = judge_run(run, folder, report, replace(own, **changes))
        name = path.resolve().name
        found.append(replace(judged, name=f"{name} (batch size {size})" if repeats.batch_sizes else name))
    return found


def _unlike(paths: Sequence[Path]) -> list[str]:
    """A sentence for each run that was trained otherwise than the first, in more than its seed and how it computes."""
    runs = [path for path in paths if path.is_dir()]
    recipes = [flat(run_recipe(RunDir.open(path))) for path in runs]
    found = []
    for path, recipe in zip(runs[1:], recipes[1:], strict=True):
        other = sorted(key for key in {*recipe, *recipes[0]} if recipe.get(key) != recipes[0].get(key))
        if differing := [key for key in other if not _CHANCE.fullmatch(key)]:
            more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            found.append(
                f"'{path.name}' was trained with another {', '.join(differing[:NAMED])}{more} than '{runs[0].name}': "
                "the slack allows for that too. Repeat one recipe with other seeds."
            )
    return found


def _same_samples(first: Judged, other: Judged) -> None:
    """Refuse evaluations of other samples: their difference is more than chance."""
    one, two = same_classes(first.test, other.test)
    differ = len(set(one.ids_N) ^ set(two.ids_N))
    if differ:
        raise SveError(
            f"'{first.name}' and '{other.name}' are evaluations of other samples ({differ:,} are on one side only).",
            "Calibrate on repeated evaluations of the same test set.",
        )
    views = [gates.samples_of(aggregate_members(side), side.ids_N, side.classes) for side in (one, two)]
    gates.pair(views[0], views[1], GateSettings().max_missing)  # the same labels
