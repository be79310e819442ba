"""Predictions: what everything after the model works from.

Shapes: M members, N samples, C classes, F features. Members are axis 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.errors import SveError
from sve_cli.filemode import whole

UNKNOWN_LABEL = -1
OPTIONAL = ("mask_NC", "soft_labels_NC", "features_MNF")
OWN = "column:"  # before the name of a further column that is called as one of the table's own
AGAIN = "Make the predictions again: sve evaluate RUN."


@dataclass(frozen=True)
class Predictions:
    """The members' outputs on one data set.

    Attributes:
        logits_MNC: float32, log-probabilities of another tool perhaps float64; where `mask_NC` is False the value is ignored.
        labels_N: int64; -1 where the label is unknown or the sample is out of distribution.
        ids_N: one stable string per sample; comparisons are paired on it.
        mask_NC: bool, False where an option does not exist; None: every option exists.
        soft_labels_NC: float32 label distributions, if known.
        features_MNF: float32 penultimate features, if kept.
        columns: further columns of the data (slices), name -> N strings.
        classes: C class names (letters for multiple choice).
        dataset, split, model_digest: where the samples and the logits come from. source_state: of a local set, see
            `data.sources.local_state`.
    """

    logits_MNC: np.ndarray
    labels_N: np.ndarray
    ids_N: list[str]
    classes: list[str]
    dataset: str = ""
    split: str = ""
    model_digest: str = ""
    source_state: str = ""
    mask_NC: np.ndarray | None = None
    soft_labels_NC: np.ndarray | None = None
    features_MNF: np.ndarray | None = None
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logits_MNC.ndim != 3:
            raise SveError(f"Predictions need logits of shape (M, N, C), not {self.logits_MNC.shape}.")
        n = self.logits_MNC.shape[1]
        if len(self.labels_N) != n or len(self.ids_N) != n:
            raise SveError(f"{n} samples, {len(self.labels_N)} labels and {len(self.ids_N)} ids do not match.")
        if self.logits_MNC.shape[2] != len(self.classes):
            raise SveError(f"{self.logits_MNC.shape[2]} logits per sample, but {len(self.classes)} class names.")
        if len(self.labels_N) and (self.labels_N.max() >= len(self.classes) or self.labels_N.min() < UNKNOWN_LABEL):
            raise SveError(f"Labels must lie in -1 … {len(self.classes) - 1} ({self.dataset}:{self.split}).")

    @property
    def n_members(self) -> int:
        return int(self.logits_MNC.shape[0])

    @property
    def n_samples(self) -> int:
        return int(self.logits_MNC.shape[1])

    @property
    def n_classes(self) -> int:
        return int(self.logits_MNC.shape[2])

    def subset(self, rows: np.ndarray) -> Predictions:
        """The samples `rows` (indices or a boolean mask of length N), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            logits_MNC=self.logits_MNC[:, index],
            labels_N=self.labels_N[index],
            ids_N=[self.ids_N[i] for i in index],
            mask_NC=None if self.mask_NC is None else self.mask_NC[index],
            soft_labels_NC=None if self.soft_labels_NC is None else self.soft_labels_NC[index],
            features_MNF=None if self.features_MNF is None else self.features_MNF[:, index],
            columns={name: [values[i] for i in index] for name, values in self.columns.items()},
        )

    def member(self, m: int) -> Predictions:
        """Member m alone, still with a member axis of length 1."""
        features = None if self.features_MNF is None else self.features_MNF[m : m + 1]
        return replace(self, logits_MNC=self.logits_MNC[m : m + 1], features_MNF=features)

    def save(self, stem: Path) -> None:
        """Write `<stem>.safetensors` (tensors) and `<stem>.parquet` (ids, labels, columns).

        Raises:
            OSError: the disk refuses; then nothing half-written is there.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.numpy import save_file

        tensors = {"logits_MNC": self.logits_MNC, "labels_N": self.labels_N}
        for name in OPTIONAL:
            if (value := getattr(self, name)) is not None:
                tensors[name] = value
        meta = {
            "classes": self.classes,
            "dataset": self.dataset,
            "split": self.split,
            "model_digest": self.model_digest,
            "format": "sve-predictions/1",
            **({"source_state": self.source_state} if self.source_state else {}),
        }
        arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        columns = {_stored_name(name): values for name, values in self.columns.items()}
        table: dict[str, Any] = {"id": self.ids_N, "label": self.labels_N, **columns}
        with whole(_beside(stem, ".safetensors")) as tensor_path:
            # One metadata key: safetensors writes several in random order, and equal predictions should be equal files.
            save_file(arrays, tensor_path, metadata={"meta": json.dumps(meta, sort_keys=True)})
            # An open file: arrow would take a path that begins with ~ or x: for another one.
            with whole(_beside(stem, ".parquet")) as table_path, table_path.open("wb") as file:
                pq.write_table(pa.table(table), file)

    @staticmethod
    def load(stem: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            SveError: a file is missing, damaged, or is not a predictions file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors import SafetensorError, safe_open

        tensor_path, table_path = _beside(stem, ".safetensors"), _beside(stem, ".parquet")
        for path in (tensor_path, table_path):
            if not path.is_file():
                hint = "It is a .safetensors of this tool with a .parquet beside it; of others, npz, CSV and parquet can be read."
                raise SveError(f"No predictions at '{path}'.", hint)
        try:
            with safe_open(tensor_path, framework="numpy") as f:
                meta = json.loads((f.metadata() or {}).get("meta", "{}"))
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            raise SveError(f"'{tensor_path}' is not a readable safetensors file ({error}).", AGAIN) from error
        if not isinstance(meta, dict) or meta.get("format") != "sve-predictions/1":
            raise SveError(f"'{tensor_path}' is not a predictions file of this tool.", AGAIN)
        try:
            with pa.OSFile(str(table_path)) as file:
                table = pq.read_table(file).to_pydict()
            ids = [str(i) for i in table.pop("id")]
            table.pop("label")
            found = {"logits_MNC": tensors["logits_MNC"], "labels_N": tensors["labels_N"]}
            found |= {name: tensors[name] for name in OPTIONAL if name in tensors}
            meant = {name: meta[name] for name in ("classes", "dataset", "split", "model_digest")}
            meant["source_state"] = meta.get("source_state", "")
        except KeyError as error:
            raise SveError(f"'{stem}' is damaged: its files have no {error}.", AGAIN) from error
        except (pa.ArrowException, OSError) as error:
            raise SveError(f"'{table_path}' is damaged ({error}).", AGAIN) from error
        columns = {name.removeprefix(OWN): ["" if v is None else str(v) for v in values] for name, values in table.items()}
        return Predictions(ids_N=ids, columns=columns, **found, **meant)


def _stored_name(column: str) -> str:
    """What a column is called in the table beside `id` and `label`, which the samples' own are called."""
    return OWN + column if column in ("id", "label") or column.startswith(OWN) else column


def _beside(stem: Path, suffix: str) -> Path:
    if not stem.name:  # '.', also where nothing was written
        raise SveError(f"'{stem}' is a folder, not predictions.", "Name the file.")
    # Not with_suffix: what follows a dot in the name is part of the name.
    return stem.with_name(stem.name + suffix)
