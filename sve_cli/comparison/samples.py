"""What a paired comparison needs of a system: a few numbers a sample in place of its members' logits.

Shapes: N samples. As float32 in a zstd parquet file they take about 30 bytes a sample, whatever the members and classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.comparison.pairing import shared_ids
from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.distribution import Distribution
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.rundir import atomic_path

FORMAT = "sve-samples/1"
NUMBERS = ("correct", "confidence", "log_label", "squared_error")
SCALED = "scaled_"
TEST = "test"


@dataclass(frozen=True)
class SetNumbers:
    """One data set as a system sees it.

    Attributes:
        source: the data set and split in one word. ids_N: as in `Predictions`. labels_N: names of the true classes, None unknown.
        entropy_N: of the ensemble's distribution, the OOD score.
        plain, scaled: `NUMBERS` by name, as in `Aggregated`, (N,) float32, NaN where the label is unknown; scaled: after the
            system's temperature, None where it has none. Empty for OOD sets.
    """

    source: str
    ids_N: list[str]
    labels_N: list[str | None]
    entropy_N: np.ndarray
    plain: dict[str, np.ndarray]
    scaled: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class SampleNumbers:
    """A system's numbers: of the test set under `TEST`, of OOD sets under their names. `run`: which run they are of."""

    run: str
    sets: dict[str, SetNumbers]

    def save(self, path: Path) -> None:
        """Write them as one parquet file, atomically; equal numbers give an equal file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {"set": [], "id": [], "label": []}
        floats = ["entropy", *NUMBERS, *(SCALED + name for name in NUMBERS)]
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in floats}
        for name, found in self.sets.items():
            n = len(found.ids_N)
            columns["set"] += [name] * n
            columns["id"] += found.ids_N
            columns["label"] += found.labels_N
            known = {"entropy": found.entropy_N, **found.plain, **{SCALED + k: v for k, v in (found.scaled or {}).items()}}
            for key in floats:
                arrays[key].append(known.get(key, np.full(n, np.nan)).astype(np.float32))
        types = {name: pa.string() for name in columns}
        content = {name: pa.array(values, types[name]) for name, values in columns.items()}
        content |= {name: pa.array(np.concatenate(parts), pa.float32()) for name, parts in arrays.items()}
        meta = {"format": FORMAT, "run": self.run, "sources": {name: found.source for name, found in self.sets.items()}}
        meta["scaled"] = [name for name, found in self.sets.items() if found.scaled is not None]
        table = pa.table(content).replace_schema_metadata({"sve": json.dumps(meta)})
        path.parent.mkdir(parents=True, exist_ok=True)
        # An open file, as below: arrow would take a path that begins with ~ or x: for another one.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            pq.write_table(
                table, file, compression="zstd", use_dictionary=["set", "label"], write_page_checksum=True,
                column_encoding={"id": "DELTA_BYTE_ARRAY", **dict.fromkeys(floats, "BYTE_STREAM_SPLIT")},
            )  # fmt: skip

    @staticmethod
    def load(path: Path) -> SampleNumbers:
        """Read what `save` wrote.

        Raises:
            SveError: the file is no such file, or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        hint = "Remove it: without it the run it is of is left out of the paired differences, unless the run is at hand."
        try:
            with pa.OSFile(str(path)) as file:
                table = pq.read_table(file, page_checksum_verification=True)
            meta = json.loads((table.schema.metadata or {})[b"sve"])
            if meta["format"] != FORMAT:
                raise SveError(f"'{path}' has the format {meta['format']}, not {FORMAT}.", hint)
            columns = {name: table.column(name).to_pylist() for name in ("set", "id", "label")}
            arrays = {name: table.column(name).to_numpy() for name in table.column_names if name not in columns}
            of_N = np.array(columns["set"])
            sets = {
                name: _read(columns, arrays, of_N == name, source, name in meta["scaled"])
                for name, source in meta["sources"].items()
            }
            return SampleNumbers(str(meta["run"]), sets)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise SveError(f"'{path}' is damaged ({type(error).__name__}: {error}).", hint) from error


def _read(
    columns: dict[str, list[Any]], arrays: dict[str, np.ndarray], rows_N: np.ndarray, source: str, scaled: bool
) -> SetNumbers:
    index = np.flatnonzero(rows_N)
    ids, labels = ([columns[name][i] for i in index] for name in ("id", "label"))
    plain, after = ({name: arrays[prefix + name][index] for name in NUMBERS} for prefix in ("", SCALED))
    return SetNumbers(source, ids, labels, arrays["entropy"][index], plain, after if scaled else None)


def numbers_of(view: Aggregated) -> dict[str, np.ndarray]:
    """The `NUMBERS` of a view, in the precision of the file; what needs a label is NaN where it is unknown."""
    known_N = view.labels_N != UNKNOWN_LABEL
    found = {"correct": np.where(known_N, view.correct_N, np.nan), "confidence": view.confidence_N}
    found |= {"log_label": view.log_label_N, "squared_error": view.squared_error_N}
    return {name: values.astype(np.float32) for name, values in found.items()}


def labels_of(predictions: Predictions) -> list[str | None]:
    """The names of the true classes; None where unknown."""
    return [None if label == UNKNOWN_LABEL else predictions.classes[label] for label in predictions.labels_N]


def paired_rows(sets: Sequence[SetNumbers], names: Sequence[str]) -> list[np.ndarray]:
    """For each system the rows of the samples that all have, in one order. `names`: what messages call the systems.

    Raises:
        SveError: too few samples are shared, or a sample has different labels.
    """
    called = [f"'{name}'" for name in names]
    shared = shared_ids([found.ids_N for found in sets], called)
    rows = []
    for found in sets:
        row = {sample: i for i, sample in enumerate(found.ids_N)}
        rows.append(np.array([row[sample] for sample in shared]))
    first = [sets[0].labels_N[i] for i in rows[0]]
    for found, index, name in zip(sets[1:], rows[1:], called[1:], strict=True):
        for sample, ours, i in zip(shared, first, index, strict=True):
            if ours != (theirs := found.labels_N[i]):
                raise SveError(
                    f"The label of sample '{sample}' is '{ours}' in {called[0]} and '{theirs}' in {name}.",
                    "Compare predictions on the same data.",
                )
    return rows


def view_of(numbers: dict[str, np.ndarray], rows_K: np.ndarray) -> Aggregated:
    """What the metrics of single samples and of confidence work on; what was not kept is NaN or empty."""
    kept = {name: numbers[name][rows_K].astype(np.float64) for name in NUMBERS}
    nothing_K = np.full(len(rows_K), np.nan)
    return Aggregated(
        labels_N=np.where(np.isnan(kept["correct"]), UNKNOWN_LABEL, 0),
        distribution=Distribution(None, np.empty((len(rows_K), 0))),
        predicted_N=np.where(kept["correct"] == 1.0, 0, 1),
        confidence_N=kept["confidence"], log_label_N=kept["log_label"], squared_error_N=kept["squared_error"],
        entropy_N=nothing_K, expected_entropy_N=nothing_K, mutual_information_N=nothing_K, disagreement_N=nothing_K,
        variation_ratio_N=nothing_K,
    )  # fmt: skip
