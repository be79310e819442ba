"""`sve compare`: runs or predictions files -> a comparison with the first of them. Opens no model and no data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sve_cli.comparison import SCORES, align, compare_ood, compare_predictions, holm, pair_sentences
from sve_cli.comparison.paired import LEVEL
from sve_cli.errors import SveError
from sve_cli.findings import Comparison, Difference, Pair
from sve_cli.foreign import NO_IDS, SUFFIXES, open_predictions
from sve_cli.metrics.aggregate import source_name
from sve_cli.posthoc.temperature import Temperature
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS
from sve_cli.render import comparison as views
from sve_cli.rundir import RunDir, check_seal, how_to_finish, read_json, write_text
from sve_cli.statistics import one_blas_thread, without_weights
from sve_cli.workflows.stored import stored_aggregate, stored_posthoc

SMALL_SET = 500
OWN_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class System:
    """What is compared: test predictions, and what their run stored beside them.

    Attributes:
        ood: predictions of OOD sets by set name.
        temperature: fitted on validation; None in a bare predictions file.
        aggregate, bins: how the run was evaluated; the aggregate with its fitted weights, if it has some.
        numbered: its ids are the numbers of its rows, for it came without.
    """

    name: str
    test: Predictions
    ood: dict[str, Predictions] = field(default_factory=dict)
    temperature: Temperature | None = None
    aggregate: str = "probs"
    bins: int = 15
    numbered: bool = False


@dataclass(frozen=True)
class Options:
    """`metrics`: registry names, none: all. `scaled`: also compare after temperature scaling."""

    metrics: Sequence[str] = ()
    bootstrap: int = 2000
    permutations: int = 2000
    confidence: float = 0.95
    scaled: bool = False
    seed: int = 0


def open_system(path: Path, but: Path | None = None, prob_columns: Sequence[str] = ()) -> System:
    """A run's folder (its newest finished evaluation) or a predictions file: of this tool (its stem, .safetensors or .parquet) or
    of another one (npz, CSV, parquet).

    Args:
        but: an evaluation of the run that is only taken where there is no other.
        prob_columns: columns with one class's probability each, of CSV and parquet files.

    Raises:
        SveError: neither is there, or the run is not finished or has no finished evaluation.
    """
    if path.is_dir():
        return _open_run(path, but)
    stem = path.with_suffix("") if path.suffix in SUFFIXES or path.suffix == ".safetensors" else path
    if not path.is_file() and not stem.with_name(stem.name + ".safetensors").is_file():
        raise SveError(f"There is neither a run nor a predictions file at '{path}'.", "Name a run's folder or a predictions file.")
    found, notes = open_predictions(path, prob_columns if path.suffix in (".csv", ".parquet") else ())
    return System(stem.name, found, numbered=any(note.endswith(NO_IDS) for note in notes))


def _open_run(path: Path, but: Path | None = None) -> System:
    run = RunDir.open(path)
    if not run.complete:
        raise SveError(f"The run '{path}' is not complete.", how_to_finish(path))
    evaluations = run.evaluations()
    if not evaluations:
        raise SveError(f"The run '{path}' has no finished evaluation.", f"Make one with: sve evaluate {path}")
    newest = other_evaluation(evaluations, but)
    check_seal(newest)
    report = read_json(newest / "report.json")
    keys = [key for row in report["rows"] for key in row["metrics"]]
    bins = next((int(found[1]) for key in keys if (found := re.fullmatch(r"ece_top1_w(\d+)", key))), 15)
    test = Predictions.load(newest / "predictions" / "test")
    return System(
        name=path.resolve().name,
        test=test,
        ood=_ood_sets(evaluations, test),
        temperature=stored_posthoc(newest).temperature,
        aggregate=stored_aggregate(newest),
        bins=bins,
    )


def other_evaluation(evaluations: Sequence[Path], but: Path | None) -> Path:
    """The first that is not `but`; that one where there is no other."""
    return next((folder for folder in evaluations if but is None or folder.resolve() != but.resolve()), evaluations[0])


def _ood_sets(evaluations: Sequence[Path], test: Predictions) -> dict[str, Predictions]:
    """The run's OOD predictions, each from the newest evaluation that has it."""
    found: dict[str, Predictions] = {}
    for folder in evaluations:
        for file in sorted((folder / "predictions").glob("*.safetensors")):
            if file.stem in OWN_SPLITS:
                continue
            loaded = Predictions.load(file.with_suffix(""))
            # Of the same trained state: the checkpoint before training has another digest.
            if loaded.model_digest == test.model_digest:
                found.setdefault(source_name(loaded), loaded)
    return found


@one_blas_thread()
def compare(systems: Sequence[System], options: Options, step: Callable[[int, str], None] = lambda n, text: None) -> Comparison:
    """Compare every system with the first one, see `open_systems`.

    Args:
        step: called with 1 and what has just been compared, `n_steps` times.

    Raises:
        SveError: systems that cannot be paired, an unknown metric, or no temperature where one is asked for.
    """
    for name in options.metrics:
        METRICS[name]
    first = systems[0]
    if options.scaled:
        for system in systems:
            _temperature(system)
    pairs = [_pair(first, other, options, step) for other in systems[1:]]
    settings = {
        "aggregate": first.aggregate, "bins": first.bins, "bootstrap": options.bootstrap, "permutations": options.permutations,
        "confidence": options.confidence, "seed": options.seed,
    }  # fmt: skip
    return Comparison(first.name, first.test.n_members, source_name(first.test), pairs, settings)


def open_systems(paths: Sequence[Path], prob_columns: Sequence[str] = ()) -> list[System]:
    """The systems, with names that differ.

    Raises:
        SveError: fewer than two, or one that cannot be opened.
    """
    if len(paths) < 2:
        raise SveError("A comparison needs at least two runs or predictions files.", "Write: sve compare REFERENCE OTHER")
    systems = [open_system(path, prob_columns=prob_columns) for path in paths]
    names, places = [system.name for system in systems], [str(path) for path in paths]

    def distinct(i: int) -> str:
        """The name where it is the only one, else the path (several files called `test`), else the place in the list."""
        if names.count(names[i]) == 1:
            return names[i]
        return places[i] if places.count(places[i]) == 1 else f"{names[i]} ({i + 1})"

    return [replace(system, name=distinct(i)) for i, system in enumerate(systems)]


def _pair(first: System, other: System, options: Options, step: Callable[[int, str], None]) -> Pair:
    aligned = align([first.test, other.test], [first.name, other.name])
    a, b = aligned.predictions
    ways = ways_of(first.aggregate, other.aggregate)
    how, resamples = (ways, first.bins, options.metrics), (options.bootstrap, options.permutations)
    last = (options.confidence, options.seed)
    rows = compare_predictions(a, b, *how, *resamples, *last)
    step(1, f"{other.name}: metrics")
    if options.scaled:
        own = (first.aggregate, other.aggregate)  # a temperature is fitted for one way of averaging
        ours, theirs = _temperature(first).apply(a), _temperature(other).apply(b)
        scaled = compare_predictions(ours, theirs, own, *how[1:], *resamples, *last)
        rows += [replace(row, key=f"temperature.{row.key}") for row in scaled]
        step(1, f"{other.name}: after temperature scaling")
    for name in _shared_sets(first, other):
        sets = align([first.ood[name], other.ood[name]], [f"{system.name} on {name}" for system in (first, other)]).predictions
        rows += compare_ood([(a, sets[0])], [(b, sets[1])], ways, SCORES, *resamples, *last)
        step(1, f"{other.name}: {name}")
    rows = holm(rows)
    notes = _notes(first, other, aligned.left_out, a.n_samples, rows, options)
    sentences = pair_sentences(other.name, first.name, rows)
    only_first, only_other = aligned.left_out
    return Pair(other.name, other.test.n_members, a.n_samples, only_first, only_other, sentences, rows, notes)


def ways_of(first: str, other: str) -> tuple[str, str]:
    """How the members of each side are averaged: with its own fitted weights, else both as the first side was evaluated."""
    return first, other if without_weights(other) != other else without_weights(first)


def _shared_sets(first: System, other: System) -> list[str]:
    return [name for name in first.ood if name in other.ood]


def _temperature(system: System) -> Temperature:
    if system.temperature is None:
        hint = "Name the run's folder (a predictions file has none), or leave --scaled out."
        raise SveError(f"'{system.name}' has no fitted temperature.", hint)
    return system.temperature


def _notes(
    first: System, other: System, left_out: Sequence[int], n: int, rows: Sequence[Difference], options: Options
) -> list[str]:
    """What was left out or weakens the numbers, one sentence each."""
    notes = []
    for system, count in zip((first, other), left_out, strict=True):
        if count:
            notes.append(f"{count:,} samples that only {system.name} has are left out.")
    places = source_name(first.test), source_name(other.test)
    if places[0] != places[1]:
        how = "by row" if first.numbered or other.numbered else "by id"
        notes.append(f"The data is called {places[0]} in one and {places[1]} in the other; samples were paired {how} all the same.")
    if first.numbered and other.numbered:
        notes.append("Neither file has ids: each row of one was paired with the row of that number in the other.")
    if ways_of(first.aggregate, other.aggregate)[1] != other.aggregate:
        kinds = {"probs": "probabilities", "logits": "logits"}
        own, here = kinds[other.aggregate], kinds[without_weights(first.aggregate)]
        but = " After temperature scaling each is on its own, for which its temperature was fitted." if options.scaled else ""
        notes.append(f"{other.name} was evaluated on the mean of its members' {own}; here both are on that of their {here}.{but}")
    tested = sum(row.p_value is not None for row in rows)
    if tested >= LEVEL * (options.permutations + 1) > 0:
        enough = f"{math.ceil(tested / LEVEL):,}"
        notes.append(
            f"With {options.permutations:,} permutations no p-value is below {1 / (options.permutations + 1):.2g}, and after the "
            f"correction for {tested} rows none below {LEVEL}: it takes --permutations {enough} or more."
        )
    if n < SMALL_SET:
        notes.append(f"Only {n} samples: intervals are wide, and calibration errors are biased upward.")
    have = {row.key for row in rows}
    missing = [name for name in options.metrics if METRICS.resolve(name).key(first.bins) not in have]
    if missing:
        notes.append(f"Left out because one side lacks what they need (labels, several members): {', '.join(missing)}.")
    alone = [name for name in (*first.ood, *other.ood) if (name in first.ood) != (name in other.ood)]
    if alone:
        notes.append(f"Out-of-distribution sets that only one side has are left out: {', '.join(alone)}.")
    return notes


def n_steps(systems: Sequence[System], scaled: bool) -> int:
    """How often `compare` calls its `step`."""
    first = systems[0]
    return sum(1 + scaled + len(_shared_sets(first, other)) for other in systems[1:])


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write comparison.json, .md and .html; the path of the last."""
    write_text(folder / "comparison.json", comparison.to_json())
    write_text(folder / "comparison.md", views.render_markdown(comparison))
    write_text(folder / "comparison.html", views.render_html(comparison))
    return folder / "comparison.html"
