"""Predictions made elsewhere: npz, CSV or parquet -> Predictions. Nothing is unpickled.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sve_cli.errors import DataError, SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions

SUFFIXES = (".npz", ".csv", ".parquet")
TOLERANCE = 1e-3  # a row of probabilities may be off by this much: it is renormalised
BLOCK = 200_000  # numbers that are worked on at a time
MISSING = ("", "-1", "-1.0", "NA", "N/A", "NaN", "nan", "null", "None")  # labels that are unknown, unless a class has that name
TINY = 1e-38  # stands for a probability of 0, whose logarithm is not finite
NO_IDS = "has no ids: its rows are numbered, and samples are paired by row."  # the end of a note
KINDS = ("probs", "logits", "log_probs")
HINT = "It needs `probs`, `logits` or `log_probs` of shape (N, C) or (M, N, C), and `labels` (npz) or a `label` column."


def open_predictions(path: Path, prob_columns: Sequence[str] = ()) -> tuple[Predictions, list[str]]:
    """A predictions file of this tool (its stem, .safetensors or .parquet) or of another one (npz, CSV, parquet).

    Raises:
        SveError: it cannot be read.
    """
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".parquet") else path
    own = bool(stem.name) and stem.with_name(stem.name + ".safetensors").is_file() and not prob_columns
    if own or path.suffix not in SUFFIXES:
        return Predictions.load(stem), []
    return read_foreign(path, prob_columns)


def read_foreign(path: Path, prob_columns: Sequence[str] = ()) -> tuple[Predictions, list[str]]:
    """Predictions from a file of another tool, and what should be known about them, in sentences.

    npz: `probs`, `logits` or `log_probs`, (N, C) or (M, N, C), `labels`, and perhaps `ids` and `classes`. CSV or parquet: a
    `label` column, a list column `probs` (or `logits`, `log_probs`) or the columns `prob_columns`, and perhaps an `id` column;
    further text columns become slices.

    Args:
        prob_columns: columns with one class's probability each; their names are the classes.

    Raises:
        SveError: the file, an array or a column is missing or damaged, a number is NaN or infinite, a row is no distribution.
    """
    if path.suffix not in SUFFIXES:
        raise SveError(f"'{path}' is no predictions file that can be read.", f"Use {', '.join(SUFFIXES)}, or one of this tool.")
    if not path.is_file():
        raise SveError(f"There is no predictions file at '{path}'.", "Check the path.")
    if path.suffix == ".npz":
        if prob_columns:
            raise SveError("--prob-columns is for CSV and parquet files.", "An npz file holds `probs` or `logits`.")
        return _from_npz(path)
    return _from_table(path, prob_columns)


def _from_npz(path: Path) -> tuple[Predictions, list[str]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array, not an archive of arrays")
        with archive:
            found = {name: archive[name] for name in archive.files}
    # RuntimeError: an archive with a password, or packed in a way that is not known.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"Cannot read '{path}' ({error}).", HINT) from error
    arrays = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}  # other files come as bytes
    kinds = [kind for kind in KINDS if kind in arrays]
    if len(kinds) != 1 or "labels" not in arrays:
        raise DataError(f"'{path}' holds {', '.join(sorted(arrays)) or 'nothing'}.", HINT)
    values = _numbers(arrays.pop(kinds[0]), path, kinds[0])
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise DataError(f"`{kinds[0]}` of '{path}' has shape {values.shape}.", HINT)
    names = [str(c) for c in arrays["classes"].ravel()] if "classes" in arrays else None
    ids = [str(i) for i in arrays["ids"].ravel()] if "ids" in arrays else None
    return _predictions(path, kinds[0], values, arrays["labels"].ravel().tolist(), names, ids, {})


def _from_table(path: Path, prob_columns: Sequence[str]) -> tuple[Predictions, list[str]]:
    columns = _columns(path, {"label", "id", *KINDS, *prob_columns})
    if "label" not in columns:
        raise DataError(f"'{path}' has no column 'label'.", f"Its columns: {', '.join(columns) or 'none'}.")
    if prob_columns:
        if missing := [name for name in prob_columns if name not in columns]:
            raise DataError(f"'{path}' has no column '{missing[0]}'.", f"Its columns: {', '.join(columns)}.")
        kind, names = "probs", list(prob_columns)
        values = np.stack([_numbers(np.array(columns[name], dtype=object), path, name) for name in prob_columns], axis=1)
    else:
        kinds = [kind for kind in KINDS if kind in columns]
        if len(kinds) != 1:
            hint = "Name the columns: --prob-columns cat,dog. Or keep one list column 'probs'."
            raise DataError(f"'{path}' has no single column 'probs', 'logits' or 'log_probs'.", hint)
        kind, names = kinds[0], []
        values = _list_column(columns[kind], path, kind)
    used = {"label", "id", kind, *prob_columns}
    slices = {
        name: ["" if v is None else str(v) for v in values_]
        for name, values_ in columns.items()
        if name not in used and values_ and all(v is None or isinstance(v, str) for v in values_)
    }
    ids = [str(i) for i in columns["id"]] if "id" in columns else None
    return _predictions(path, kind, values, columns["label"], names or None, ids, slices)


def _columns(path: Path, used: set[str]) -> dict[str, list[object]]:
    """The columns of a table; none of the `used` may be there twice."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    try:
        # A name or an id may look like a number: 00007 is not 7.
        as_text = pa_csv.ConvertOptions(column_types={"label": pa.string(), "id": pa.string()})
        with pa.OSFile(str(path)) as file:  # arrow would take a path that begins with ~ or x: for another one
            table = pq.read_table(file) if path.suffix == ".parquet" else pa_csv.read_csv(file, convert_options=as_text)
    except (pa.ArrowInvalid, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read '{path}' ({error}).", HINT) from error
    if not table.num_rows:
        raise DataError(f"'{path}' has no rows.", HINT)
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1 and name in used]:
        raise DataError(f"'{path}' has {names.count(twice[0])} columns '{twice[0]}'.", "Rename or remove all but one.")
    return {name: table.column(i).to_pylist() for i, name in enumerate(table.column_names)}


def _list_column(cells: Sequence[object], path: Path, name: str) -> np.ndarray:
    """A column of lists, or of their text in a CSV: `[0.1, 0.9]`, commas or spaces."""
    rows: list[list[object]] = []
    for i, cell in enumerate(cells):
        items = cell.strip().strip("[]()").replace(",", " ").replace(";", " ").split() if isinstance(cell, str) else cell
        if not isinstance(items, list) or not items:
            raise DataError(f"Row {i + 1} of '{path}' has no list in the column '{name}'.", "Write [0.1, 0.9].")
        if rows and len(items) != len(rows[0]):
            raise DataError(f"Row {i + 1} of '{path}' has {len(items)} numbers in '{name}' and row 1 has {len(rows[0])}.")
        rows.append(items)
    return _numbers(np.array(rows, dtype=object), path, name)


def _numbers(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Floats as they are, all else as float64; the first row with something that is no finite number is named."""
    try:
        # None becomes NaN.
        numbers = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"'{name}' of '{path}' holds something that is no number ({error}).") from error
    if name == "log_probs" and np.isneginf(numbers.min(initial=0.0)):
        numbers = np.where(numbers == -np.inf, numbers.dtype.type(np.log(TINY)), numbers)
    # The smallest and the largest number say whether one is not finite, without a mask of all of them.
    if not np.isfinite([numbers.min(initial=0.0), numbers.max(initial=0.0)]).all():
        bad = ~np.isfinite(numbers)
        row = int(np.argwhere(bad)[0][-2 if numbers.ndim > 1 else 0])
        rows = bad.any(axis=tuple(i for i in range(bad.ndim) if i != max(bad.ndim - 2, 0)))
        raise DataError(
            f"Row {row + 1} of '{path}' has a value in '{name}' that is NaN, infinite or missing ({int(rows.sum()):,} such rows).",
            "Mend or remove these rows.",
        )
    return numbers


def _predictions(
    path: Path,
    kind: str,
    values: np.ndarray,
    labels: Sequence[object],
    names: list[str] | None,
    ids: list[str] | None,
    slices: dict[str, list[str]],
) -> tuple[Predictions, list[str]]:
    values_MNC = values[None] if values.ndim == 2 else values
    n_classes = values_MNC.shape[2]
    classes = names or [str(c) for c in range(n_classes)]
    if len(classes) != n_classes:
        raise DataError(f"'{path}' names {len(classes)} classes, but has {n_classes} numbers a row.")
    if ids is not None and len(ids) != values_MNC.shape[1]:
        raise DataError(f"'{path}' has {len(ids)} ids for {values_MNC.shape[1]} rows.")
    notes = []
    if ids is None:
        ids = [str(i) for i in range(values_MNC.shape[1])]
        notes.append(f"'{path.name}' {NO_IDS}")
    logits_MNC, zeros = (values_MNC, 0) if kind == "logits" else _log_probs(values_MNC, path, kind)
    del values, values_MNC
    if zeros:
        notes.append(f"{zeros:,} probabilities are exactly 0: they count as {TINY:g}, so the NLL stays finite.")
    labels_N = _labels(labels, classes, path)
    if kind == "logits":
        logits_MNC = logits_MNC.astype(np.float32, copy=False)
    found = Predictions(logits_MNC, labels_N, ids, classes, path.stem, "", columns=slices)
    return found, notes


def _log_probs(values_MNC: np.ndarray, path: Path, kind: str) -> tuple[np.ndarray, int]:
    """Renormalised log-probabilities, and how many probabilities were 0; computed in float64, some rows at a time.

    In the given precision: float32 would split probabilities that are stated as equal.
    """
    members, n, width = values_MNC.shape
    log_probs_MNC, total_MN = np.empty_like(values_MNC), np.empty((members, n))
    bad_MN, zeros = np.zeros((members, n), dtype=bool), 0
    step = max(BLOCK // (members * width), 1)
    for rows in (slice(start, start + step) for start in range(0, n, step)):
        given_MBC = values_MNC[:, rows].astype(np.float64)
        probs_MBC = np.exp(np.minimum(given_MBC, 1.0)) if kind == "log_probs" else given_MBC
        total_MN[:, rows] = probs_MBC.sum(axis=2)
        bad_MN[:, rows] = (probs_MBC < 0).any(axis=2) | ~(np.abs(total_MN[:, rows] - 1.0) <= TOLERANCE)
        if bad_MN[:, rows].any():
            continue
        if kind == "log_probs":  # never through exp: what is below the smallest float64 counts as it is
            log_probs_MNC[:, rows] = given_MBC - np.log(total_MN[:, rows, None])
        else:
            zeros += int((probs_MBC == 0).sum())
            log_probs_MNC[:, rows] = np.log(np.maximum(probs_MBC / total_MN[:, rows, None], TINY))
    if bad_MN.any():
        member, row = (int(i) for i in np.argwhere(bad_MN)[0])
        where = f" (member {member})" if len(values_MNC) > 1 else ""
        raise DataError(
            f"Row {row + 1}{where} of '{path}' is no distribution: its probabilities sum to {total_MN[member, row]:.6g} "
            f"({int(bad_MN.any(axis=0).sum()):,} such rows).",
            "They must be at least 0 and sum to 1 within 0.001. If they are logits, call them `logits`.",
        )
    return log_probs_MNC, zeros


def _labels(labels: Sequence[object], classes: list[str], path: Path) -> np.ndarray:
    """Class numbers, from numbers or names; missing and -1 are unknown.

    Text that is all class names is names, also where they look like numbers; numbers are names only where they are not numbers of
    classes.
    """
    place = {name: i for i, name in enumerate(classes)}
    known = [
        (i, label) for i, label in enumerate(labels) if label is not None and (str(label) in place or str(label) not in MISSING)
    ]
    by_name = [place.get(str(label), place.get(str(label).lower(), -2)) for _, label in known]
    by_number = [_number(label) for _, label in known]
    named, numbered = (all(0 <= n < len(classes) for n in found) for found in (by_name, by_number))
    text = all(isinstance(label, (str, bool)) for _, label in known)
    either = [max(pair) for pair in zip(by_name, by_number, strict=True)]
    chosen = by_name if named and (text or not numbered) else by_number if numbered else either
    found_N = np.full(len(labels), UNKNOWN_LABEL, dtype=np.int64)
    for (i, label), number in zip(known, chosen, strict=True):
        if not 0 <= number < len(classes):
            raise DataError(
                f"The label of row {i + 1} of '{path}' is '{label}', which is none of its {len(classes)} classes.",
                f"Write a number from 0 to {len(classes) - 1}, a class name, or -1 for unknown.",
            )
        found_N[i] = number
    return found_N


def _number(label: object) -> int:
    """A label as the number of a class; -2 where it is none."""
    if isinstance(label, str):
        return int(float(label)) if re.fullmatch(r"[0-9]+(\.0*)?", label) else -2
    return int(label) if isinstance(label, int) or (isinstance(label, float) and label.is_integer()) else -2
