"""Slices in gates: which samples, or which slices, an address below `slice.` is about."""

from __future__ import annotations

import numpy as np

from sve_cli.errors import SveError
from sve_cli.gate import missing_notes
from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.slices import SMALLEST, groupings
from sve_cli.predictions import Predictions
from sve_cli.report import Report
from sve_cli.workflows.gate_sides import Reference

PREFIX = "slice."
WORST = "slice.worst"  # `slice.worst.nll`: of all slices; `slice.worst.domain.nll`: of those of one column


def is_slice(key: str) -> bool:
    """Whether the address is about a slice or the worst of them."""
    return key.startswith(PREFIX)


def slice_rows(view: Aggregated, test: Predictions) -> dict[str, np.ndarray]:
    """Address of each slice of the labelled samples, without a metric -> their rows. Ids may repeat, rows do not."""
    labelled = np.flatnonzero(view.labels_N >= 0)
    found: dict[str, np.ndarray] = {}
    for g in groupings(view, test.columns, test.classes):
        for k, value in enumerate(g.values):
            found[f"{PREFIX}{g.column}.{value}"] = labelled[g.group_N == k]
    return found


def with_ids(predictions: Predictions, ids: set[str]) -> Predictions | None:
    """The samples with these ids; None without any."""
    rows = [i for i, sample in enumerate(predictions.ids_N) if sample in ids]
    return predictions.subset(np.array(rows, dtype=np.int64)) if rows else None


def labelled_ids(predictions: Predictions) -> set[str]:
    """The ids of the samples with a label."""
    return {predictions.ids_N[i] for i in np.flatnonzero(predictions.labels_N >= 0)}


def lost_samples(reference: Reference, here: set[str], prefix: str, max_missing: float) -> list[str]:
    """What the judged side lacks of the baseline's samples, as a whole and, where the baseline has columns, of the slice `prefix`.

    Args:
        here: ids of the judged side's labelled samples.

    Raises:
        SveError: more than `max_missing` of them.
    """
    if reference.test is None:
        there = {"the baseline": set(reference.samples.ids_N if reference.samples is not None else ())}
    else:
        test = reference.test
        rows = slice_rows(aggregate(test, reference.aggregate), test).get(prefix, ())
        there = {"the baseline": labelled_ids(test), f"the baseline ({prefix})": {test.ids_N[i] for i in rows}}
    notes = []
    for name, ids in there.items():
        notes += missing_notes(len(ids & here), {name: len(ids)}, max_missing) if ids else []
    return notes


def worst_addresses(report: Report, key: str) -> list[str]:
    """The addresses that `slice.worst.<metric>` or `slice.worst.<column>.<metric>` stands for; none for another address."""
    prefix, _, name = key.rpartition(".")
    column = prefix.removeprefix(WORST).removeprefix(".")
    if prefix != WORST and not prefix.startswith(f"{WORST}."):
        return []
    parts = [part for part in report.slices if name in part.metrics and column in ("", part.column)]
    return [f"{PREFIX}{part.column}.{part.value}.{name}" for part in parts]


def small_slices(report: Report, key: str) -> list[str]:
    """The slices below `slice.worst.<metric>` or `slice.worst.<column>.<metric>` that are too small to have metrics, in words."""
    column = key.rpartition(".")[0].removeprefix(WORST).removeprefix(".")
    parts = [part for part in report.slices if not part.metrics and column in ("", part.column)]
    return [f"{part.column}.{part.value} has {part.n:,} samples" for part in parts]


def missing_slice(report: Report, key: str) -> str:
    """Why the report has no slice at an address, in a sentence.

    Raises:
        SveError: the address itself is wrong, whatever slices there are.
    """
    prefix, _, name = key.rpartition(".")
    known = list(dict.fromkeys(metric for part in report.slices for metric in part.metrics))
    if known and name not in known:
        raise SveError(f"Slices have no metric '{name}'.", f"They have {', '.join(known)}.")
    for part in report.slices:
        if f"{PREFIX}{part.column}.{part.value}" == prefix:
            return f"the slice has {part.n:,} samples, and at least {SMALLEST} are needed."
    columns = list(dict.fromkeys(part.column for part in report.slices))
    if not columns:
        return "the test set has no slices."
    return f"the test set has no such slice; its slices are of {', '.join(columns)}."
