"""Samples of one split, and the three splits of a data set.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sve_cli.errors import DataError
from sve_cli.samples.images import ImageItem, LazyImages

Modality = Literal["text", "image", "multiple_choice"]


@dataclass(frozen=True)
class Samples:
    """One split.

    Attributes:
        dataset, split: where the samples come from.
        inputs: "text" (and "text_pair") | "image" | "question", "choices" (a list of strings per sample), "context".
        labels_N: int64 index into `classes` (multiple choice: into the sample's choices); -1: unknown.
        ids_N: one stable string per sample: column "id" if unique, else "<split>-<row of the source>".
        classes: C class names; [] for multiple choice.
        columns: the slice columns asked for, name -> N strings.
        soft_labels_NC: float32 label distributions, if the set has them (column `human_probs`).
        modality: what the inputs are.
    """

    dataset: str
    split: str
    inputs: dict[str, Sequence[Any]]
    labels_N: np.ndarray
    ids_N: list[str]
    classes: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    soft_labels_NC: np.ndarray | None = None
    modality: Modality = "text"

    def __len__(self) -> int:
        return len(self.ids_N)

    def subset(self, rows: np.ndarray) -> Samples:
        """The samples `rows` (indices or a boolean mask of length N), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            inputs={name: _take(values, index) for name, values in self.inputs.items()},
            labels_N=self.labels_N[index],
            ids_N=[self.ids_N[i] for i in index],
            columns={name: [values[i] for i in index] for name, values in self.columns.items()},
            soft_labels_NC=None if self.soft_labels_NC is None else self.soft_labels_NC[index],
        )

    def fingerprint(self) -> str:
        """Hex sha256 over labels, ids and inputs, independent of where they are stored; computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.labels_N.astype("<i8").tobytes())
        for value in self.ids_N:
            _hash(digest, value)
        for name in sorted(self.inputs):
            _hash(digest, name)
            for item in self.inputs[name]:
                _hash(digest, item)
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """The splits asked for; None where not asked for. `notes` says what was done to them, for the report."""

    train: Samples | None
    validation: Samples | None
    test: Samples | None
    notes: list[str]


def _take(values: Sequence[Any], index: np.ndarray) -> Sequence[Any]:
    return values.subset(index) if isinstance(values, LazyImages) else [values[i] for i in index]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read '{path}' ({error.strerror}).", "Put the file there, or remove its row.") from error


def _hash(digest: hashlib._Hash, item: str | list[str] | ImageItem) -> None:
    """Feed one item with its kind and length, so that no two different sequences feed the same bytes."""
    if isinstance(item, list):
        digest.update(b"l%d:" % len(item))
        for part in item:
            _hash(digest, part)
        return
    if isinstance(item, Path):
        item = _content(item)
    if isinstance(item, np.ndarray):
        digest.update(repr((item.shape, item.dtype.str)).encode())
        item = item.tobytes()
    kind = b"s" if isinstance(item, str) else b"b"
    data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
    digest.update(kind + b"%d:" % len(data))
    digest.update(data)
