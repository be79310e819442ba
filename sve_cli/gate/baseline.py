"""The baseline file: a report's values and, per sample, what paired comparison needs. JSON, small enough to commit.

The samples are columns in little-endian binary, compressed with zlib and written as base64 lines.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import textwrap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.errors import SveError
from sve_cli.gate.samples import AGREE, Samples, recomputable, samples_of
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric
from sve_cli.registry import METRICS
from sve_cli.report import Direction, MetricValue

BASELINE_SCHEMA = "sve-baseline/1"
MOST_BYTES = 1 << 30  # of unpacked samples: a damaged or hostile file must not fill the memory
FLOATS = ("doubt_N", "rest_N", "nll_N")  # 1 - confidence and 1 - sum of squares: what is small keeps its digits
MANTISSA = (16, 23, 52)  # bits tried in turn: the fewest that give the metrics
AGAIN = "Make it again with: sve gate baseline"


@dataclass(frozen=True)
class Baseline:
    """What is committed.

    Attributes:
        title, dataset, split, model_digest: where it comes from.
        aggregate, bins: how it was evaluated.
        confidence: the level of the values' intervals.
        values: report values by address; samples: for pairing; paired: report keys that the samples give exactly.
    """

    title: str
    dataset: str
    split: str
    model_digest: str
    aggregate: str
    bins: int
    confidence: float
    values: dict[str, MetricValue]
    samples: Samples
    paired: list[str]

    def to_json(self) -> str:
        """The file's text: the values in readable lines, the samples packed."""
        columns = pack(self.samples)
        values = {key: [_digits(v.value), _digits(v.low), _digits(v.high), v.n, v.direction] for key, v in self.values.items()}
        head = {
            "schema": BASELINE_SCHEMA, "title": self.title, "dataset": self.dataset, "split": self.split,
            "model_digest": self.model_digest, "aggregate": self.aggregate, "bins": self.bins, "confidence": self.confidence,
            "n": self.samples.n, "paired": self.paired,
        }  # fmt: skip
        lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
        table = ",\n".join(f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(value)}" for key, value in values.items())
        packed = ",\n".join(f"  {json.dumps(line)}" for line in textwrap.wrap(columns, 120))
        return "{\n" + "\n".join(lines) + f'\n "values": {{\n{table}\n }},\n "samples": [\n{packed}\n ]\n}}\n'


def make_baseline(
    title: str, view: Aggregated, ids_N: list[str], classes: list[str], values: Mapping[str, MetricValue], **facts: Any
) -> Baseline:
    """A baseline of an evaluation; what its samples give is checked against the predictions.

    The numbers are rounded to as few bits as leave every metric within 1e-6.

    Args:
        values: report values by address.
        facts: the other fields of `Baseline`.

    Raises:
        SveError: no sample has a label, or an id occurs twice.
    """
    samples = samples_of(view, ids_N, classes)
    exact = recomputable(samples, view, facts["bins"])
    for bits in MANTISSA:
        rounded = _from_columns(samples, {name: _round_bits(column, bits) for name, column in _columns(samples).items()})
        if set(recomputable(rounded, view, facts["bins"])) == set(exact):
            break
    return Baseline(title=title, values=dict(values), samples=rounded, paired=list(exact), **facts)


def differing(baseline: Baseline) -> list[str]:
    """Report keys whose value recomputed from the samples is not the stored one within 1e-6; none in a sound file."""
    view = baseline.samples.view()
    metrics = metrics_by_key(baseline.bins)
    found = []
    for key in baseline.paired:
        stored = baseline.values.get(key)
        if stored is not None and key in metrics and not abs(metrics[key].compute(view, baseline.bins) - stored.value) <= AGREE:
            found.append(key)
    return found


def metrics_by_key(bins: int) -> dict[str, Metric]:
    """The registered metrics by report key."""
    metrics: list[Metric] = [METRICS.resolve(name) for name in METRICS]
    return {metric.key(bins): metric for metric in metrics}


def _columns(samples: Samples) -> dict[str, np.ndarray]:
    """What is stored: where a sample is correct, the true class's probability is the confidence and its nll is left out (0)."""
    nll_N = np.where(samples.correct_N > 0.5, 0.0, samples.nll_N)
    return {"doubt_N": 1.0 - samples.confidence_N, "rest_N": 1.0 - samples.squares_N, "nll_N": nll_N}


def _from_columns(samples: Samples, columns: Mapping[str, np.ndarray]) -> Samples:
    """The samples with what the stored columns say."""
    doubt_N = columns["doubt_N"]
    nll_N = np.where(samples.correct_N > 0.5, -np.log1p(-np.minimum(doubt_N, 1.0 - 1e-12)), columns["nll_N"])
    return replace(samples, confidence_N=1.0 - doubt_N, squares_N=1.0 - columns["rest_N"], nll_N=nll_N)


def _round_bits(column_N: np.ndarray, bits: int) -> np.ndarray:
    """The nearest numbers with so many bits of mantissa; those of float32's range stay in it."""
    if bits >= 52:
        return column_N
    mantissa, exponent = np.frexp(column_N)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)
    return np.where(np.abs(rounded) < 1e-37, 0.0, rounded).astype(np.float32).astype(np.float64)


def pack(samples: Samples) -> str:
    """The samples as base64 of zlib of a JSON head line followed by the columns."""
    columns = _columns(samples)
    narrow = all((column.astype(np.float32) == column).all() for column in columns.values())
    kind = "<f4" if narrow else "<f8"
    head = {"ids": samples.ids_N, "classes": samples.classes, "floats": kind}
    parts = [json.dumps(head, ensure_ascii=False).encode(), b"\n", samples.labels_N.astype("<i4").tobytes()]
    parts.append(samples.correct_N.astype(np.uint8).tobytes())
    for name in FLOATS:
        # Byte planes: the exponents of all samples stand together, and compress.
        parts.append(np.ascontiguousarray(columns[name].astype(kind).view(np.uint8).reshape(samples.n, -1).T).tobytes())
    return base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii")


def unpack(text: str) -> Samples:
    """Read what `pack` wrote.

    Raises:
        ValueError: it is damaged.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("the samples are cut off")
    head_bytes, _, body = data.partition(b"\n")
    head = json.loads(head_bytes)
    ids, classes, kind = head["ids"], head["classes"], head["floats"]
    if kind not in ("<f4", "<f8") or not all(isinstance(item, str) for item in (*ids, *classes)):
        raise ValueError("the head is not as it should be")
    n, width = len(ids), int(kind[2])
    if len(body) != n * (5 + 3 * width):
        raise ValueError(f"{len(body)} bytes for {n} samples")
    labels_N = np.frombuffer(body, "<i4", n).astype(np.int64)
    correct_N = np.frombuffer(body, np.uint8, n, 4 * n).astype(np.float64)
    columns = {}
    for i, name in enumerate(FLOATS):
        planes = np.frombuffer(body, np.uint8, n * width, 5 * n + i * n * width).reshape(width, n)
        columns[name] = np.ascontiguousarray(planes.T).view(kind)[:, 0].astype(np.float64)
    if n == 0 or len(set(ids)) < n or labels_N.min() < 0 or labels_N.max() >= len(classes):
        raise ValueError("ids or labels are not as they should be")
    if not all(np.isfinite(column).all() for column in columns.values()):
        raise ValueError("a number is not finite")
    nothing_N = np.zeros(n)
    bare = Samples(ids, labels_N, nothing_N, correct_N, nothing_N, nothing_N, classes)
    return _from_columns(bare, columns)


def load_baseline(path: Path, raw: dict[str, Any]) -> Baseline:
    """A baseline from its parsed JSON.

    Raises:
        SveError: it is damaged, or its samples do not give its values.
    """
    try:
        values = {key: _value(*entry) for key, entry in raw["values"].items()}
        facts = {key: raw[key] for key in ("title", "dataset", "split", "model_digest", "aggregate", "bins", "confidence")}
        baseline = Baseline(values=values, samples=unpack("".join(raw["samples"])), paired=list(raw["paired"]), **facts)
        wrong = differing(baseline)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SveError(f"The baseline file '{path}' is damaged ({error}).", AGAIN) from error
    if wrong:
        raise SveError(f"The samples of the baseline file '{path}' do not give its values: {', '.join(wrong)}.", AGAIN)
    return baseline


def _digits(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")


def _value(value: float | None, low: float | None, high: float | None, n: int, direction: Direction) -> MetricValue:
    return MetricValue(math.nan if value is None else float(value), int(n), direction, "", low, high)
