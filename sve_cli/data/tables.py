"""Files to arrow tables: parquet, csv, tsv, json, jsonl, and folders of images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sve_cli.errors import DataError
from sve_cli.registry import nearest
from sve_cli.samples import SUFFIXES as IMAGE_SUFFIXES

_WHOLE = re.compile(r"\s*-?(0|[1-9][0-9]{0,17})\s*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_FRACTION = re.compile(r"[.eE]")
_NULLS = frozenset(pyarrow.csv.ConvertOptions().null_values)
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True)
class RawSplit:
    """One split as it is stored.

    Attributes:
        dataset, split: names, as the recipe says them.
        table: the rows.
        where: file or set, for messages.
        root: folder that relative image paths start from.
    """

    dataset: str
    split: str
    table: pa.Table
    where: str
    root: Path | None = None
    features: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str, key: str) -> pa.ChunkedArray:
        """The column `name`, which the recipe names under `key`.

        Raises:
            DataError: there is none.
        """
        names = self.table.column_names
        if name not in names:
            raise DataError(
                f"'{self.where}' has no column '{name}'; its columns are {', '.join(names)}.",
                f"Change {key} in the recipe. {nearest(name, names)}",
            )
        if names.count(name) > 1:
            raise DataError(f"'{self.where}' has {names.count(name)} columns '{name}'.", "Rename or remove all but one.")
        return self.table.column(name)

    def class_names(self, name: str) -> list[str] | None:
        """The names of a Hugging Face ClassLabel column; None for any other column."""
        feature = self.features.get(name)
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            return [str(n) for n in feature["names"]]
        return None


@dataclass(frozen=True)
class BuiltinData:
    """A data set inside the package: its splits, and what reads one."""

    splits: tuple[str, ...]
    read: Callable[[str], pa.Table]

    def __call__(self, split: str) -> pa.Table:
        """The rows of `split`, with Hugging Face feature types.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.splits:
            raise DataError(f"The built-in set has no split '{split}'.", f"Splits: {', '.join(self.splits)}.")
        return self.read(split)


def features_of(table: pa.Table) -> dict[str, Any]:
    """Hugging Face feature types from the schema's metadata; {} when there are none."""
    raw = (table.schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # the metadata is a comment of another tool: the columns are readable without it
    return features if isinstance(features, dict) else {}


def read_table(path: Path, string_columns: tuple[str, ...] = (), label: str = "") -> pa.Table:
    """Read one file. In csv files `string_columns` stay text, whatever they look like, and `label` unless all of it is numbers.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            # Not read_table, which would import all of arrow's data set machinery.
            with pa.OSFile(str(path)) as opened, pyarrow.parquet.ParquetFile(opened) as file:
                return file.read()
        if path.suffix in (".csv", ".tsv"):
            return _read_csv(path, string_columns, label)
        return _read_json(path)
    # ValueError: broken JSON or encoding; the others: numbers beyond 64 bits, and brackets without end.
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"Cannot read '{path}': {error}", "Open the file and repair the place that is named.") from error


def _read_csv(path: Path, string_columns: tuple[str, ...], label: str) -> pa.Table:
    types = {name: pa.string() for name in (*string_columns, label) if name}
    parsing = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
    with pa.OSFile(str(path)) as file:  # arrow would take a path that begins with ~ or x: for another one
        table = pyarrow.csv.read_csv(file, parse_options=parsing, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
    if path.suffix == ".tsv":
        _check_unmerged(table, path)
    if label in string_columns or table.column_names.count(label) != 1:
        return table
    place = table.column_names.index(label)
    return table.set_column(place, label, _numbers_or_text(table.column(place)))


def _check_unmerged(table: pa.Table, path: Path) -> None:
    """Refuse a tsv file where a quotation mark that begins a cell may have taken rows into it: many such files quote nothing.

    Rows of several columns that are merged leave their tabs in cells; with one column a cell of two lines may be two rows.

    Raises:
        DataError: there is such a cell.
    """
    import pyarrow.compute as pc

    names = table.column_names
    texts = [(name, column) for name, column in zip(names, table.columns, strict=True) if _is_text(column.type)]
    rows = [(name, pc.index(pc.match_substring_regex(cells, "[\r\n]"), True).as_py()) for name, cells in texts]
    broken = [(row + 2, f"column '{name[:80]}'") for name, row in rows if row >= 0]  # the header is line 1
    if any(end in name for name in names for end in "\r\n"):
        broken = [(1, "the header")]
    elif table.num_columns > 1 and not any(pc.any(pc.match_substring(cells, "\t")).as_py() for _, cells in texts):
        return
    if broken:
        line, where = min(broken)
        raise DataError(
            f"A cell of '{path}' goes over the end of its line (line {line}, {where}): a quotation mark at its beginning takes in "
            "all rows up to the next one.",
            "Remove the quotation mark or the line break, or write the file as .jsonl, which cannot be misread.",
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _numbers_or_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels that are all whole numbers, or all numbers, as such; else as they are written: `True` of one split is that of another.

    Arrow's own guess would make 1 of 01, and `true` of True in the one split that has nothing else.
    """
    texts = [None if text in _NULLS else text for text in column.to_pylist()]
    known = [text for text in texts if text is not None]
    if not known:
        return pa.chunked_array([pa.nulls(len(texts))])
    if all(_WHOLE.fullmatch(text) for text in known):
        return pa.chunked_array([pa.array([None if text is None else int(text) for text in texts], pa.int64())])
    if all(_NUMBER.fullmatch(text) for text in known) and any(_FRACTION.search(text) for text in known):
        return pa.chunked_array([pa.array([None if text is None else float(text) for text in texts])])
    return column


def _read_json(path: Path) -> pa.Table:
    """A list of objects, or one object a line. Python's reader: arrow's would turn texts that look like dates into dates."""
    text = path.read_text(encoding="utf-8-sig")
    is_list = text.lstrip().startswith("[")
    rows = json.loads(text) if is_list else [_json_line(line, i) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' must hold JSON objects, one a row.", 'Write each row like {"text": "…", "label": "…"}.')
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _json_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from error


def image_files(folder: Path) -> list[Path]:
    """The images directly inside a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if _is_image(p.name) and p.is_file())


def images_below(folder: Path) -> Iterator[Path]:
    """The images inside a folder at any depth, sorted, its own before those of its folders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def class_folders(folder: Path) -> list[Path]:
    """The folders inside one that hold images, at any depth. A leading underscore or dot marks what is no data."""
    with os.scandir(folder) as entries:  # which says what is a folder without a look at each file: there may be millions
        inner = [Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith((".", "_"))]
    return sorted(p for p in inner if next(images_below(p), None) is not None)


def read_image_folder(folder: Path, image_column: str, label_column: str) -> pa.Table:
    """`<class>/**/*.png` as a table of paths (relative to `folder`) and class names; images beside class folders have no class."""
    loose = image_files(folder)
    found = [(path, c.name) for c in class_folders(folder) for path in images_below(c)]
    if not found:
        return pa.table({image_column: [stored_path(path, folder) for path in loose]})
    paths, labels = [stored_path(path, folder) for path, _ in found], [label for _, label in found]
    paths += [stored_path(path, folder) for path in loose]
    return pa.table({image_column: paths, label_column: pa.array(labels + [None] * len(loose), pa.string())})


def read_every_image(folder: Path, image_column: str) -> pa.Table:
    """The images inside a folder, at any depth, as a table of paths (relative to `folder`)."""
    return pa.table({image_column: pa.array([stored_path(path, folder) for path in images_below(folder)], pa.string())})


def stored_path(path: Path, folder: Path) -> str:
    """A file's path from a folder on, for a table.

    Raises:
        DataError: it is no text, so no table could hold it.
    """
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The file name {str(path)!a} is not UTF-8.", "Rename the file.") from error
    return name
