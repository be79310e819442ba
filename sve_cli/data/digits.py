"""The set inside the package: 1,797 handwritten digits of 8x8 pixels (UCI; see sve_cli/assets/digits/ATTRIBUTION.md)."""

from __future__ import annotations

from importlib.resources import files

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sve_cli.data.tables import BuiltinData

_STORED = ("train", "validation", "test")
_OOD_DIGITS = (8, 9)


def _read(split: str) -> pa.Table:
    """Columns id, image (PNG), label. Split "ood": every 8 and 9, for networks that only know 0 to 7."""
    stored = _STORED if split == "ood" else (split,)
    tables = []
    for name in stored:
        with (files("sve_cli") / "assets" / "digits" / f"{name}.parquet").open("rb") as file:
            tables.append(pq.ParquetFile(file).read())
    table = pa.concat_tables(tables)
    return table.filter(pc.is_in(table["label"], pa.array(_OOD_DIGITS, type=pa.int64()))) if split == "ood" else table


load_digits = BuiltinData(splits=(*_STORED, "ood"), read=_read)
