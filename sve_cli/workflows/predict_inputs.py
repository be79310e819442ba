"""What `sve predict` reads: files, folders and literal texts -> samples without labels, and what is wrong with the others.

Shapes: N inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from sve_cli.data.columns import as_choices, read_ids, read_inputs
from sve_cli.data.sources import local_path
from sve_cli.data.tables import TABLE_SUFFIXES, RawSplit, features_of, read_every_image, read_table, stored_path
from sve_cli.errors import DataError, SveError
from sve_cli.predictions import UNKNOWN_LABEL
from sve_cli.recipe import Recipe
from sve_cli.recipe.spec import DataSpec
from sve_cli.samples import SUFFIXES, Samples, decode_image, is_file
from sve_cli.workflows.session import MODALITY

LINES = ".txt"  # one text, or one path of an image, a line


@dataclass(frozen=True)
class Given:
    """What was handed in.

    Attributes:
        ids: of all N inputs, in their order.
        samples: those that can be read.
        errors: id -> why it cannot be read.
        notes: what the reader should know, one sentence each.
    """

    ids: list[str]
    samples: Samples
    errors: dict[str, str]
    notes: list[str]

    def without(self, errors: dict[str, str]) -> Given:
        """Leave out more of them.

        Raises:
            DataError: nothing is left.
        """
        if not errors:
            return self
        every = {**self.errors, **errors}
        good = np.array([name not in errors for name in self.samples.ids_N], dtype=bool)
        if not good.any():
            raise _nothing(every)
        return replace(self, samples=self.samples.subset(good), errors=every)


def read_given(recipe: Recipe, source: str | None, texts: Sequence[str]) -> Given:
    """The inputs of a file or folder, or texts given literally.

    Raises:
        SveError: nothing or two things are given, the file does not exist or holds another kind of input, a column is missing,
            or no row can be read.
    """
    spec, modality = recipe.data, MODALITY[recipe.task.name]
    if (source is None) == (not texts):
        raise SveError("Name what to predict: a file, a folder, or --text.", "Either INPUT or --text, not both.")
    if texts and (modality != "text" or spec.text_pair):
        raise SveError("--text is for single texts, and this run reads something else.", f"Give {_files(spec, modality)}.")
    raw = _literal(spec, texts) if source is None else _open(spec, source, modality)
    _require_columns(raw, spec, modality)
    ids, renamed = read_ids(raw)
    if modality == "image" and source is not None and Path(source).suffix not in TABLE_SUFFIXES:
        paths = [str(value) for value in raw.column(spec.image, "").to_pylist()]
        ids = paths if len(set(paths)) == len(paths) else ids
    errors = dict(_row_errors(raw, spec, modality, ids))
    good = pa.array([name not in errors for name in ids], pa.bool_())
    if len(errors) == len(ids):
        raise _nothing(errors)
    left = replace(raw, table=raw.table.filter(good))
    names = [name for name in ids if name not in errors]
    labels_N = np.full(len(names), UNKNOWN_LABEL, dtype=np.int64)
    inputs = read_inputs(left, spec, modality)
    samples = Samples(raw.dataset, raw.split, inputs, labels_N, names, [], modality=modality)  # type: ignore[arg-type]
    notes = [f"The column 'id' of '{raw.where}' is not unique, so the inputs are numbered by row."] if renamed else []
    given = Given(ids, samples, errors, notes)
    return given.without(_undecodable(samples)) if modality == "image" else given


def _nothing(errors: dict[str, str]) -> DataError:
    return DataError("No input could be read.", next(iter(errors.values())))


def _columns(spec: DataSpec, modality: str) -> list[str]:
    """The columns that a table must have."""
    if modality == "text":
        return [spec.text, *([spec.text_pair] if spec.text_pair else [])]
    return [spec.image] if modality == "image" else [spec.question, spec.choices]


def _files(spec: DataSpec, modality: str) -> str:
    """What a run of this kind takes, in words."""
    columns = " and ".join(f"'{name}'" for name in _columns(spec, modality))
    several = len(_columns(spec, modality)) > 1
    table = f"a csv, tsv, jsonl, json or parquet file with the column{'s' if several else ''} {columns}"
    if modality == "image":
        return f"an image, a folder of images, a .txt file with one path a line, or {table}"
    return table if several else f"{table}, or a .txt file with one text a line"


def _require_columns(raw: RawSplit, spec: DataSpec, modality: str) -> None:
    """Refuse a table without the columns that the run reads, or without rows.

    Raises:
        DataError: there is one.
    """
    have = raw.table.column_names
    if missing := [name for name in _columns(spec, modality) if name not in have]:
        names = ", ".join(f"'{name}'" for name in missing)
        raise DataError(
            f"'{raw.where}' has no column{'s' if len(missing) > 1 else ''} {names}; its columns are {', '.join(have) or 'none'}.",
            f"Rename the column: this run takes {_files(spec, modality)}.",
        )
    if not raw.table.num_rows:
        raise DataError(f"'{raw.where}' has no rows.", "Write one input a row.")


def _literal(spec: DataSpec, texts: Sequence[str]) -> RawSplit:
    try:
        return RawSplit("text", "input", pa.table({spec.text: list(texts)}), "--text")
    except UnicodeEncodeError as error:
        raise DataError("A text behind --text is not UTF-8.", "Write it to a UTF-8 file, and name the file.") from error


def _open(spec: DataSpec, source: str, modality: str) -> RawSplit:
    path = local_path(source)
    if path is None:
        hint = "A text itself goes behind --text." if modality == "text" else f"Paths start at the current folder, {Path.cwd()}."
        raise DataError(f"There is no file or folder '{source}'.", hint)
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"'{path}' is empty.", f"Give {_files(spec, modality)}.")
    if path.is_file() and path.suffix in TABLE_SUFFIXES:
        strings = tuple(c for c in (spec.text, spec.text_pair, spec.question, spec.choices, "context", "id") if c)
        table = read_table(path, strings)
        return RawSplit(path.name, "input", table, str(path), path.parent, features_of(table))
    if path.is_file() and path.suffix == LINES and len(_columns(spec, modality)) == 1:
        return RawSplit(path.name, "input", pa.table({_columns(spec, modality)[0]: _lines(path)}), str(path), path.parent)
    if modality == "image" and path.is_file() and path.suffix.lower() in SUFFIXES:
        return RawSplit(path.name, "input", pa.table({spec.image: [stored_path(path, path.parent)]}), str(path), path.parent)
    if modality == "image" and path.is_dir():
        table = read_every_image(path, spec.image)
        if table.num_rows:
            return RawSplit(path.name, "input", table, str(path), path)
        raise DataError(f"'{path}' holds no images.", f"Images end in {', '.join(SUFFIXES)}.")
    kind = "a folder" if path.is_dir() else f"a {path.suffix} file" if path.suffix else "a file without an ending"
    raise DataError(f"'{path}' is {kind}, which this run cannot read.", f"Give {_files(spec, modality)}.")


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would end lines inside texts too: at U+2028 or U+0085
    except (OSError, ValueError) as error:  # ValueError: another encoding
        raise DataError(f"Cannot read '{path}': {error}.", "Save it as UTF-8 text.") from error
    return lines if lines[-1] else lines[:-1]


def _row_errors(raw: RawSplit, spec: DataSpec, modality: str, ids: list[str]) -> list[tuple[str, str]]:
    """(id, what is wrong) of the rows that hold no input."""
    checks: dict[str, Callable[[object], str]] = {}
    if modality == "text":
        checks = {name: _no_text for name in _columns(spec, modality)}
    elif modality == "multiple_choice":
        checks = {spec.question: _no_text, spec.choices: _no_choices}
    elif pa.types.is_string((images := raw.column(spec.image, "")).type) or images.null_count:
        checks = {spec.image: lambda value: _no_image(value, raw.root)}
    found: dict[str, str] = {}
    for column, check in checks.items():
        for name, value in zip(ids, raw.column(column, "").to_pylist(), strict=True):
            if (error := check(value)) and name not in found:
                found[name] = error if len(checks) == 1 else f"{error} (column '{column}')"
    return [(name, found[name]) for name in ids if name in found]


def _no_text(value: object) -> str:
    return "" if value is not None and str(value).strip() else "The text is empty."


def _no_choices(value: object) -> str:
    return "" if as_choices(value) is not None else 'There is no list of at least two choices, such as ["first", "second"].'


def _no_image(value: object, root: Path | None) -> str:
    if value is None or value == "":
        return "The row names no image."
    if not isinstance(value, str):
        return ""  # bytes or pixels: decoding tells
    path = Path(value) if root is None else root / value
    return "" if is_file(path) else f"There is no image '{path if len(value) < 200 else value[:80]}'."


def _undecodable(samples: Samples) -> dict[str, str]:
    errors, images = {}, samples.inputs["image"]
    for row, name in enumerate(samples.ids_N):
        try:
            decode_image(images[row])
        except DataError as error:
            errors[name] = error.message
    return errors


def too_many_options(samples: Samples, n_classes: int) -> dict[str, str]:
    """Id -> why: questions with more options than the run has letters."""
    counts = {name: len(options) for name, options in zip(samples.ids_N, samples.inputs.get("choices", []), strict=False)}
    text = "The question has {} options, and this run was trained for at most {}."
    return {name: text.format(count, n_classes) for name, count in counts.items() if count > n_classes}
