"""Write sve_cli/assets/digits/*.parquet from scikit-learn's copy of the UCI optical digits.

Command: python benchmarks/make_digits.py        (seed 0; 900 train, 300 validation, 597 test, stratified)
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

OUT = Path(__file__).resolve().parents[1] / "sve_cli" / "assets" / "digits"
FEATURES = {
    "id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "label": {"names": [str(i) for i in range(10)], "_type": "ClassLabel"},
}


def png(image_HW: np.ndarray) -> bytes:
    """The 17 grey levels 0 … 16 as a PNG of 0 … 255; `round(pixel / 255 * 16)` gives them back."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(image_HW * (255 / 16)).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Cut the splits and write one file for each."""
    digits = load_digits()
    rest, test = train_test_split(np.arange(len(digits.target)), test_size=597, stratify=digits.target, random_state=0)
    train, validation = train_test_split(rest, test_size=300, stratify=digits.target[rest], random_state=0)
    schema = pa.schema(
        [("id", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()},
    )
    OUT.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        rows = np.sort(rows)
        columns = {
            "id": [f"digits-{row}" for row in rows],
            "image": [{"bytes": png(digits.images[row]), "path": None} for row in rows],
            "label": [int(digits.target[row]) for row in rows],
        }
        pq.write_table(pa.table(columns, schema=schema), OUT / f"{name}.parquet", compression="zstd")


if __name__ == "__main__":
    main()
