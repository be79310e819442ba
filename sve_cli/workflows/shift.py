"""`sve shift`: a finished run on corrupted copies of its test rows, and on other labelled sets.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import Resize

from sve_cli.corruptions import SEVERITIES, Corruption, choose, corrupt, require_severities
from sve_cli.corruptions.build import ALL
from sve_cli.data.labels import mapped_labels, strangers
from sve_cli.data.load import limited, load_samples
from sve_cli.errors import DataError, SveError
from sve_cli.json_text import to_json
from sve_cli.posthoc.temperature import Temperature
from sve_cli.predictions import UNKNOWN_LABEL
from sve_cli.recipe import Recipe, digest
from sve_cli.render.shift import render_html, render_markdown
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json, write_text
from sve_cli.samples import Samples
from sve_cli.shift import Cell, Kind, SecondSet, Shift
from sve_cli.workflows.session import MODALITY, Log, Session, environment, open_session, own_data, run_recipe
from sve_cli.workflows.shift_cells import Cells
from sve_cli.workflows.shift_scores import Judge
from sve_cli.workflows.stored import run_aggregate, stored_aggregate, stored_posthoc

CLEAN = "clean"


def shift(
    run: RunDir,
    log: Log,
    *,
    corruptions: Sequence[str] = (ALL,),
    severities: Sequence[int] = SEVERITIES,
    sets: Sequence[str] = (),
    limit: int | None = None,
    out: Path | None = None,
    command: str = "",
) -> tuple[Path, Shift]:
    """Measure a finished run under shift and write shift.json, .md and .html. What was predicted once is not predicted again.

    Args:
        corruptions: names, groups, "all" that suit the inputs, or "none".
        severities: of 1 to 5; the clean rows are always measured.
        sets: other labelled sets of the run's classes, as names, paths or 'set:split'.
        limit: most rows of the test split and of each set, drawn in proportion to the labels.
        out: where everything goes; default: below the run.

    Raises:
        SveError: an unfinished or changed run, an unknown corruption or one of another kind of input, a severity that does not
            exist, a set that cannot be used.
    """
    check_seal(run.path)
    recipe = run_recipe(run)
    chosen = choose(corruptions, MODALITY[recipe.task.name])
    levels = require_severities(severities)
    if not chosen and not sets:
        raise SveError("There is nothing to measure: no corruption and no set.", "Use --corruptions all, or --sets NAME.")
    stored = read_json(run.path / "recipe.lock.json")["limit"]
    # How many options a question may have is read from all splits.
    need = ("train", "validation", "test") if recipe.task.name == "multiple_choice" else ("test",)
    session = open_session(recipe, log, stored, need=need)
    test, rows, warnings = _test_rows(session, limit)
    others = [_second_set(session, name, limit) for name in sets]
    for sentence in (warnings := [*warnings, *_own_data(recipe, sets)]):
        log.warn(sentence)
    trained = file_digest(run.path / "ensemble.safetensors")
    cells = Cells(session, session.load_run(run), trained, (out or run.path / "shift") / "cells")
    how = run_aggregate(run)
    # Of all rows, so that --limit does not change the unit.
    varying = len(_option_counts(session.data.test).union(*(other.options for other in others))) > 1
    judge = Judge(recipe.evaluate, how, _temperature(run, how), recipe.seed, varying)
    clean, found, seconds = _measure(cells, judge, test, chosen, levels, others)
    members = recipe.method.members
    result = Shift(
        title=f"Shift of {recipe.method.name}, {members} member{'s' if members > 1 else ''}, on {recipe.data.name}",
        dataset=test.dataset, split=test.split, members=cells.ensemble.n_members, rows=rows,
        confidence=recipe.evaluate.confidence, metrics=judge.definitions(),
        temperature=None if judge.temperature is None else judge.temperature.value,
        kinds={c.name: Kind(c.title, c.group, c.sentence, c.strengths()) for c in chosen},
        clean=clean, cells=found, sets=seconds, warnings=warnings, provenance=_provenance(run, cells, how, command),
    )  # fmt: skip
    notes = [*session.data.notes, *(other.note for other in others if other.note), *_remarks(result, varying)]
    result = replace(result, notes=notes)
    folder = out or run.path / "shift" / cells.key_of([c.name for c in chosen], levels, list(sets), test.fingerprint(), how)
    _write(folder, result)
    return folder, result


def _write(folder: Path, result: Shift) -> None:
    write_text(folder / "shift.md", render_markdown(result))
    write_text(folder / "shift.html", render_html(result))
    write_text(folder / "shift.json", to_json(result.document()))


def _test_rows(session: Session, limit: int | None) -> tuple[Samples, str, list[str]]:
    """The labelled test rows that are measured, which they are in words, and warnings."""
    whole = session.data.test
    assert whole is not None
    labelled = whole.subset(whole.labels_N != UNKNOWN_LABEL)
    test = labelled if limit is None else limited(labelled, limit, _data_seed(session.recipe))
    warnings = [] if session.limit is None else [f"The run was made with --limit {session.limit}, which holds here too."]
    if len(test) == len(whole):
        return test, f"all {len(test):,} test rows", warnings
    if len(test) == len(labelled):
        return test, f"the {len(test):,} labelled rows of {len(whole):,} test rows", warnings
    rows = f"{len(test):,} of {len(labelled):,} test rows, drawn in proportion to the classes"
    return test, rows, [*warnings, f"Limited to {rows}: not comparable with the whole split."]


def _data_seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.data.seed is None else recipe.data.seed


@dataclass(frozen=True)
class _Other:
    """Another labelled set: its rows with a label of the run's, how many have none, that in words, and its numbers of options."""

    name: str
    samples: Samples
    left_out: int
    note: str
    options: set[int]


def _option_counts(samples: Samples | None) -> set[int]:
    """The numbers of options of questions; empty for other inputs, whose classes are one number."""
    return set() if samples is None else {len(choices) for choices in samples.inputs.get("choices", ())}


def _second_set(session: Session, name: str, limit: int | None) -> _Other:
    """Another labelled set, with its labels as the run's.

    Raises:
        DataError: it does not exist, has no labels, or has other classes.
    """
    recipe, kind = session.recipe, session.task.modality
    samples = load_samples(name, replace(recipe.data, classes=None), kind)
    labels_N, own, classes = samples.labels_N, samples.classes, list(session.task.classes)
    if not (labels_N != UNKNOWN_LABEL).any():
        raise DataError(f"No row of the set '{name}' has a label.", "What can be said without labels: sve ood RUN --sets NAME")
    foreign: list[str] = []
    if kind != "multiple_choice":
        foreign = strangers(labels_N, own, classes)
        labels_N = mapped_labels(labels_N, own, classes)
    kept_N = labels_N != UNKNOWN_LABEL
    if not kept_N.any():
        raise DataError(
            f"The set '{name}' has other classes than this run: '{foreign[0]}' is none of its {len(classes)}.",
            "Classes are matched by name. A set of other classes is one for: sve ood RUN --sets NAME",
        )
    # Label distributions are over the set's own classes, and nothing here reads them.
    samples = replace(samples, labels_N=labels_N, classes=classes, soft_labels_NC=None).subset(kept_N)
    options = _option_counts(samples)
    if limit is not None:
        samples = limited(samples, limit, _data_seed(recipe))
    left_out = int((~kept_N).sum())
    if not left_out:
        return _Other(name, samples, 0, "", options)
    strange = f"; {len(foreign)} of its classes the run does not know, such as '{foreign[0]}'" if foreign else ""
    note = f"{name}: {left_out:,} of {len(kept_N):,} rows have no label of the run's and are left out{strange}."
    return _Other(name, samples, left_out, note, options)


def _own_data(recipe: Recipe, names: Sequence[str]) -> list[str]:
    return [f"'{n}' is the data this run was trained or tested on, not a shift." for n in own_data(recipe, names)]


def _temperature(run: RunDir, aggregate: str) -> Temperature | None:
    """The temperature that an evaluation of the run fitted with this way of averaging members."""
    for folder in run.evaluations():
        posthoc = stored_posthoc(folder)
        if stored_aggregate(folder) == aggregate and posthoc.temperature is not None:
            return posthoc.temperature
    return None


def _measure(
    cells: Cells, judge: Judge, test: Samples, chosen: Sequence[Corruption], levels: Sequence[int], others: Sequence[_Other]
) -> tuple[Cell, list[Cell], list[SecondSet]]:
    """Every cell predicted, scored and let go, one after another."""
    session = cells.session
    seed, reduce, n = session.recipe.seed, _reduction(session), len(test)
    total = (1 + len(chosen) * len(levels)) * n + sum(len(other.samples) for other in others)
    with session.log.progress(total * cells.ensemble.n_members, "Predicting") as advance:
        plain = cells.predictions(CLEAN, test, advance)
        clean = judge.score(plain)
        found: list[Cell] = []
        for one in chosen:
            for severity in levels:
                made = partial(corrupt, test, one, severity, seed, reduce)
                got = cells.predictions(f"{one.name}-{severity}", test, advance, made, one.strengths())
                same = np.array_equal(got.logits_MNC, plain.logits_MNC)
                scored = clean if same else judge.score(got)
                found.append(Cell(one.name, severity, n, scored.scores, same, judge.change(clean, scored, paired=not same)))
        seconds = []
        for other in others:
            scored = judge.score(cells.predictions(other.name, other.samples, advance))
            change = judge.change(clean, scored, paired=False)
            seconds.append(SecondSet(other.name, len(other.samples), other.left_out, scored.scores, change))
    if cells.kept:
        session.log.say(f"{cells.kept} of {cells.kept + cells.made} sets of predictions were there already ({cells.root}).")
    return Cell("", 0, n, clean.scores), found, seconds


def _reduction(session: Session) -> Callable[[Image.Image], Image.Image] | None:
    """The network's own reduction of large images, where it has one: what comes after it is seen, what comes before may vanish."""
    steps = getattr(session.task.backbone.transform, "transforms", [])
    resize = next((step for step in steps if isinstance(step, Resize)), None)
    if resize is None or session.task.modality != "image":
        return None

    def reduce(image: Image.Image) -> Image.Image:
        smaller: Image.Image = resize(image)
        return smaller if min(smaller.size) < min(image.size) else image

    return reduce


def _remarks(found: Shift, varying: bool) -> list[str]:
    """What the reader of the means should know about corruptions that change nothing, the temperature, and the unit."""
    notes = [] if found.temperature is not None else ["The run has no fitted temperature, so that nothing is shown after one."]
    if varying:
        notes.append("The number of options varies: in every row, entropies are divided by the logarithm of that of each question.")
    if names := found.untouched():
        shown = ", ".join(f"{found.kinds[name].title.lower()} ({name})" for name in names)
        notes.append(
            f"Every prediction stays what it was, to the bit, under: {shown}. "
            "The network does not see that; it counts in the means all the same."
        )
    return notes


def _provenance(run: RunDir, cells: Cells, how: str, command: str) -> dict[str, Any]:
    recipe = cells.session.recipe
    return {
        "command": command, "run": str(run.path), "recipe_digest": digest(recipe), "trained_digest": cells.trained,
        "aggregate": how, "seed": recipe.seed, "batch_size": recipe.evaluate.batch_size,
        "bootstrap": recipe.evaluate.bootstrap, "predictions": str(cells.root), "environment": environment(),
    }  # fmt: skip
