"""Columns of a stored split to the inputs of a modality, ids and slices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sve_cli.data.tables import RawSplit
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec
from sve_cli.samples import LazyImages, is_file, is_image_type

SOFT_LABELS = "human_probs"
LENGTH = "length"  # as a slice: words of the text
_TASK = {"text": "text_classification", "image": "image_classification", "multiple_choice": "multiple_choice"}


def read_inputs(raw: RawSplit, spec: DataSpec, modality: str) -> dict[str, Sequence[Any]]:
    """The inputs of `modality`.

    Raises:
        DataError: the set holds another modality, or a column is missing or of the wrong type.
    """
    column = {"text": spec.text, "image": spec.image, "multiple_choice": spec.choices}[modality]
    found = _modality(raw, spec)
    if column not in raw.table.column_names and found not in (None, modality):
        key = "choices" if modality == "multiple_choice" else modality
        raise DataError(
            f"The recipe asks for {_spoken(modality)}, but '{raw.where}' holds {_spoken(str(found))} "
            f"(columns {', '.join(raw.table.column_names)}).",
            f"Choose a set of {_spoken(modality)}; or set task.name: {_TASK[str(found)]}, or name the column under data.{key}.",
        )
    if modality == "image":
        return {"image": _images(raw, spec.image)}
    if modality == "text":
        inputs: dict[str, Sequence[Any]] = {"text": _texts(raw, spec.text, "data.text")}
        if spec.text_pair:
            inputs["text_pair"] = _texts(raw, spec.text_pair, "data.text_pair")
        return inputs
    questions = _texts(raw, spec.question, "data.question")
    context = _texts(raw, "context", "") if "context" in raw.table.column_names else [""] * len(questions)
    return {"question": questions, "choices": _choices(raw, spec.choices), "context": context}


def _spoken(modality: str) -> str:
    return {"text": "text", "image": "images", "multiple_choice": "multiple-choice questions"}[modality]


def _modality(raw: RawSplit, spec: DataSpec) -> str | None:
    """What the set holds, judged by its columns; None when it cannot be told."""
    schema = raw.table.schema
    if spec.choices in schema.names and spec.question in schema.names:
        return "multiple_choice"
    if any(is_image_type(f.type) for f in schema) or spec.image in schema.names:
        return "image"
    return "text" if spec.text in schema.names else None


def _texts(raw: RawSplit, name: str, key: str) -> list[str]:
    values = raw.column(name, key)
    kind = values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(f"Column '{name}' of '{raw.where}' holds {kind} values, not text.", f"Change {key} in the recipe.")
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        values = values.cast(pa.string())
    return ["" if text is None else text for text in values.to_pylist()]


def _images(raw: RawSplit, name: str) -> LazyImages:
    values = raw.column(name, "data.image")
    if isinstance(values.type, pa.ExtensionType):
        values = pa.chunked_array([chunk.storage for chunk in values.chunks], values.type.storage_type)
    images = LazyImages(values, raw.root)
    if is_image_type(values.type):
        return images
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise DataError(
            f"Column '{name}' of '{raw.where}' holds {values.type} values, not images.", "Change data.image in the recipe."
        )
    first = images[0] if len(images) else None
    if isinstance(first, Path) and not is_file(first):
        raise DataError(
            f"Column '{name}' of '{raw.where}' holds text, and it is no path of an image: '{str(values[0].as_py())[:80]}'.",
            f"Paths start at '{raw.root}'. If the set is text, set task.name: text_classification.",
        )
    return images


def _choices(raw: RawSplit, name: str) -> list[list[str]]:
    """Lists of strings; a Hugging Face struct of texts and keys; or, in csv files, a JSON list."""
    values = raw.column(name, "data.choices").to_pylist()
    choices: list[list[str]] = []
    for row, value in enumerate(values):
        found = as_choices(value)
        if found is None:
            raise DataError(
                f"Row {row} of '{raw.where}' has no list of at least two choices in column '{name}'.",
                'Choices are a list of strings; in a csv file write them as JSON, ["first", "second"].',
            )
        choices.append(found)
    return choices


def as_choices(value: object) -> list[str] | None:
    """The options of one row; None where it has no list of at least two."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list) or len(value) < 2:
        return None
    return ["" if option is None else str(option) for option in value]


def option_keys(raw: RawSplit, name: str) -> list[list[str]] | None:
    """The options' own keys ("A", "B", … or "1", "2", …) where the set gives them."""
    kind = raw.column(name, "data.choices").type
    if not pa.types.is_struct(kind) or kind.get_field_index("label") < 0:
        return None
    return [[str(key) for key in value["label"]] for value in raw.table.column(name).to_pylist()]


def read_ids(raw: RawSplit) -> tuple[list[str], bool]:
    """(ids, whether an id column had to be passed over because its values are not unique)."""
    fallback = [f"{raw.split}-{row}" for row in range(raw.table.num_rows)]
    if "id" not in raw.table.column_names:
        return fallback, False
    ids = ["" if v is None else str(v) for v in raw.column("id", "").to_pylist()]
    return (ids, False) if len(set(ids)) == len(ids) and "" not in ids else (fallback, True)


def read_slices(
    raw: RawSplit, names: list[str], *, strict: bool, inputs: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, list[str]]:
    """The slice columns as strings, class indices as names. Not strict: leave out those the set does not have.

    Where there is no column `length`, that name stands for the number of words (between spaces) of the inputs that are text.

    Raises:
        DataError: strict, and a column is missing.
    """
    columns: dict[str, list[str]] = {}
    for name in names:
        if name == LENGTH and name not in raw.table.column_names and (lengths := word_counts(inputs or {})):
            columns[name] = lengths
            continue
        if not strict and name not in raw.table.column_names:
            continue
        values, classes = raw.column(name, "data.slices").to_pylist(), raw.class_names(name)
        if classes is not None:
            values = [classes[v] if isinstance(v, int) and 0 <= v < len(classes) else "" for v in values]
        columns[name] = ["" if v is None else str(v) for v in values]
    return columns


def word_counts(inputs: Mapping[str, Sequence[Any]]) -> list[str]:
    """Words of each sample's texts together, as strings; none where the inputs are no text."""
    texts = [inputs[name] for name in ("text", "text_pair", "question") if name in inputs]
    return [str(sum(len(str(text).split()) for text in row)) for row in zip(*texts, strict=True)]


def read_soft_labels(raw: RawSplit, names: list[str], classes: list[str]) -> np.ndarray | None:
    """float32 (N, C) human label shares over `classes`, each row summing to one; None where the set has none.

    A row whose whole mass lies on classes that are left out becomes uniform.
    """
    if SOFT_LABELS not in raw.table.column_names or any(c not in names for c in classes):
        return None
    rows = raw.column(SOFT_LABELS, "").to_pylist()
    try:
        fits = all(isinstance(row, list) and len(row) == len(names) for row in rows)
        given_NC = np.asarray(rows if fits else [], dtype=np.float64).reshape(-1, len(names))
    except (ValueError, TypeError):  # lists of something else
        fits = False
    if not fits or not (np.isfinite(given_NC) & (given_NC >= 0)).all():
        raise DataError(
            f"Column '{SOFT_LABELS}' of '{raw.where}' must hold one number, at least 0, for each of the {len(names)} classes.",
            "Rename the column if it is something else.",
        )
    soft_NC = given_NC[:, [names.index(c) for c in classes]]
    total_N1 = soft_NC.sum(axis=1, keepdims=True)
    even = np.full_like(soft_NC, 1.0 / len(classes))
    return np.divide(soft_NC, total_N1, out=even, where=total_N1 > 0).astype(np.float32)
