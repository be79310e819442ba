"""Columns that are called as the table's own: nothing is lost, and nothing takes the place of ids or labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.slices import groupings
from sve_cli.predictions import Predictions


def test_columns_called_id_and_label_are_kept(tmp_path: Path) -> None:
    columns = {"label": ["a", "b", "a"], "id": ["x", "x", "y"], "column:label": ["1", "2", "3"], "column:x": ["4", "5", "6"]}
    columns["place"] = ["p"] * 3
    logits_MNC, labels_N = np.zeros((1, 3, 2), np.float32), np.array([0, 1, -1])
    made = Predictions(logits_MNC, labels_N, ["i", "j", "k"], ["u", "v"], columns=columns)
    made.save(tmp_path / "test")
    found = Predictions.load(tmp_path / "test")
    assert found.ids_N == ["i", "j", "k"] and found.labels_N.tolist() == [0, 1, -1]
    assert found.columns == columns and list(found.columns) == list(columns)
    assert [g.column for g in groupings(aggregate(found), found.columns, found.classes)] == [
        g.column for g in groupings(aggregate(made), made.columns, made.classes)
    ]
    assert pq.read_schema(tmp_path / "test.parquet").names[:2] == ["id", "label"], "what other tools read there"
