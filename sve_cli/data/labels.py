"""Labels of any stored form to class indices that agree across splits.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sve_cli.data.tables import RawSplit
from sve_cli.errors import DataError
from sve_cli.predictions import UNKNOWN_LABEL
from sve_cli.registry import nearest

LARGEST = int(np.iinfo(np.int64).max)
MOST_CLASSES = 100_000  # a larger whole number is an id or a measurement, not a class


def coded_labels(raw: RawSplit, column: str) -> tuple[np.ndarray, list[str]]:
    """The labels as indices into the split's own class names; -1 where empty, null or negative one.

    Names: those of a ClassLabel; "0" … "max" for whole numbers; the sorted different values for text.

    Raises:
        DataError: the column is missing or holds something that is not a class.
    """
    values = raw.column(column, "data.label")
    kind, names = values.type, raw.class_names(column)
    if pa.types.is_integer(kind):
        codes_N = _whole_numbers(values)
        highest = int(codes_N.max(initial=UNKNOWN_LABEL))
        limit = MOST_CLASSES if names is None else len(names)
        if codes_N.min(initial=0) < UNKNOWN_LABEL or highest >= limit:
            known = [int(v) for v in values.to_pylist() if v is not None]  # as they are stored
            bad = max(known) if highest >= limit else min(known)
            raise DataError(
                f"Label {bad} in column '{column}' of '{raw.where}' is not a class index (0 … {limit - 1}, or -1 for unknown).",
                "Name the label column under data.label; regression is not supported.",
            )
        return codes_N, names if names is not None else [str(i) for i in range(highest + 1)]
    if pa.types.is_boolean(kind) or pa.types.is_null(kind) or pa.types.is_dictionary(kind):
        values, kind = values.cast(pa.string()), pa.string()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"Column '{column}' of '{raw.where}' holds {kind} values, which are no class labels.",
            "Name a column of class names or whole numbers under data.label; regression is not supported.",
        )
    texts = values.to_pylist()
    found = sorted({text for text in texts if text})
    position = {name: i for i, name in enumerate(found)}
    return np.array([position.get(text, UNKNOWN_LABEL) for text in texts], dtype=np.int64), found


def _whole_numbers(values: pa.ChunkedArray) -> np.ndarray:
    """int64, -1 for null. Through Python: arrow's own conversion imports pandas, which takes half a second.

    What int64 cannot hold (arrow has uint64 too) becomes its largest number, which is no class either.
    """
    return np.array([UNKNOWN_LABEL if v is None else min(v, LARGEST) for v in values.to_pylist()], dtype=np.int64)


def chosen_classes(names: list[str], wanted: list[str] | None, where: str) -> list[str]:
    """The classes of the task: all of `names`, or `wanted` in its order.

    Raises:
        DataError: a wanted class does not exist or is named twice, or fewer than two are left.
    """
    classes = names if wanted is None else [str(c) for c in wanted]
    for name in classes:
        if name not in names:
            raise DataError(f"'{where}' has no class '{name}'.", f"Change data.classes. {nearest(name, names)}")
    if len(set(classes)) != len(classes):
        raise DataError("data.classes names a class twice.", f"It says {', '.join(classes)}.")
    if len(classes) < 2:
        raise DataError(
            f"'{where}' has {len(classes)} classes; a classifier needs at least two.", "Look at data.label and data.classes."
        )
    return classes


def mapped_labels(codes_N: np.ndarray, names: list[str], classes: list[str]) -> np.ndarray:
    """Indices into `names` as indices into `classes`; -1 where unknown or not among `classes`."""
    position = {name: i for i, name in enumerate(classes)}
    table = np.array([position.get(name, UNKNOWN_LABEL) for name in names] + [UNKNOWN_LABEL], dtype=np.int64)
    return table[codes_N]  # code -1 reads the last entry


def strangers(codes_N: np.ndarray, names: list[str], known: list[str]) -> list[str]:
    """The class names that occur but are not in `known`."""
    present = np.unique(codes_N[codes_N >= 0])
    return [names[i] for i in present if names[i] not in set(known)]


def choice_labels(raw: RawSplit, column: str, choices: list[list[str]], keys: list[list[str]] | None) -> np.ndarray:
    """Multiple choice: the index of the right option; from an index, a letter, an option's key or its text.

    Raises:
        DataError: a label names no option of its question.
    """
    values = raw.column(column, "data.label")
    if pa.types.is_integer(values.type):
        labels_N = _whole_numbers(values)
    else:
        labels_N = _options(["" if v is None else str(v).strip() for v in values.to_pylist()], choices, keys, raw.where)
    counts_N = np.array([len(c) for c in choices], dtype=np.int64)
    bad = np.flatnonzero((labels_N >= counts_N) | (labels_N < UNKNOWN_LABEL))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"Row {row} of '{raw.where}' has {counts_N[row]} choices, but its label is {values[row].as_py()!r}.",
            "The label must be the index (from 0), the letter or the text of one of the choices.",
        )
    return labels_N


def _options(texts: list[str], choices: list[list[str]], keys: list[list[str]] | None, where: str) -> np.ndarray:
    """Indices of the options that a column means: by their keys, texts, letters or numbers, the same way in every row.

    Where no way fits all rows each row is read alone, and one that means none gets an index past the end (the caller reports it).

    Raises:
        DataError: several ways fit all rows and mean different options.
    """
    known = [i for i, text in enumerate(texts) if text]
    ways = {
        "key": [_place(texts[i], keys[i]) for i in known] if keys is not None else [],
        "text": [_place(texts[i], choices[i]) for i in known],
        "letter": [_letter(texts[i]) for i in known],
        "number": [int(texts[i]) if texts[i].isdecimal() else -1 for i in known],
    }
    counts = [len(choices[i]) for i in known]
    fitting = {name: found for name, found in ways.items() if found and all(0 <= k < n for k, n in zip(found, counts, strict=True))}
    found = fitting.get("key") or next(iter(fitting.values()), None)
    if "key" not in fitting and any(other != found for other in fitting.values()):
        names = " or ".join(fitting)
        raise DataError(
            f"The labels of '{where}' can be read by {names} of the options, and that makes different answers.",
            "Write the index of the right option, from 0, in a column of whole numbers.",
        )
    if found is None:
        readings = list(zip(*(way for way in ways.values() if way), strict=True))
        found = [next((k for k in row if k >= 0), n) for row, n in zip(readings, counts, strict=True)]
    labels_N = np.full(len(texts), UNKNOWN_LABEL, dtype=np.int64)
    labels_N[known] = found
    return labels_N


def _place(text: str, options: list[str]) -> int:
    return options.index(text) if text in options else -1


def _letter(text: str) -> int:
    return ord(text.upper()) - ord("A") if len(text) == 1 and "A" <= text.upper() <= "Z" else -1
