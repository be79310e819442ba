"""Where files are written and how: under the very name that is given, whole or not at all."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError

from sve_cli.certify import worker
from sve_cli.commands.predict import COLUMNS, write_rows
from sve_cli.comparison.samples import NUMBERS, SampleNumbers, SetNumbers
from sve_cli.data.tables import read_table
from sve_cli.filemode import whole
from sve_cli.foreign import open_predictions
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.predictions import Predictions
from tests.conftest import full_disk

ODD = ["~", "~nobody-here", "exp:1", "file:x", "hdfs:", "C:x", "a%20b"]  # to arrow mostly the user's folder, or addresses


def predictions(n: int = 3) -> Predictions:
    rng = np.random.default_rng(0)
    logits_MNC = rng.normal(size=(2, n, 2)).astype(np.float32)
    return Predictions(logits_MNC, np.zeros(n, np.int64), [f"s{i}" for i in range(n)], ["a", "b"])


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A relative path to a folder that arrow would take for something else."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path(request.param).mkdir()
    return Path(request.param)


def test_what_is_written_to_an_odd_place_is_there(odd: Path) -> None:
    made = predictions()
    made.save(odd / "p")
    np.testing.assert_array_equal(Predictions.load(odd / "p").logits_MNC, made.logits_MNC)
    ones = np.ones(3, np.float32)
    numbers = SetNumbers("toy", made.ids_N, ["a"] * 3, ones, dict.fromkeys(NUMBERS, ones))
    SampleNumbers("run", {"test": numbers}).save(odd / "n.parquet")
    assert SampleNumbers.load(odd / "n.parquet").sets["test"].ids_N == made.ids_N
    row = {**dict.fromkeys(COLUMNS), "id": "s0", "probabilities": {"a": 1.0}, "error": None}
    write_rows(odd / "rows.parquet", [row], ["a"])
    with (odd / "rows.parquet").open("rb") as file:
        assert pq.ParquetFile(file).read().column("p:a").to_pylist() == [1.0]
    assert {p.name for p in odd.iterdir()} == {"p.safetensors", "p.parquet", "n.parquet", "rows.parquet"}
    assert not any(Path("home").iterdir())


def test_tables_are_read_from_an_odd_place(odd: Path) -> None:
    table = pa.table({"text": ["x", "y"], "label": ["0", "1"], "probs": [[0.5, 0.5], [0.1, 0.9]]})
    with (odd / "t.parquet").open("wb") as file:
        pq.write_table(table, file)
    (odd / "t.csv").write_text("text,label,u,v\nx,0,0.5,0.5\ny,1,0.1,0.9\n")
    (odd / "t.tsv").write_text("text\tlabel\nx\t0\ny\t1\n")
    for name in ("t.parquet", "t.csv", "t.tsv"):
        assert read_table(odd / name).column("text").to_pylist() == ["x", "y"]
    for name, columns in (("t.parquet", []), ("t.csv", ["u", "v"])):
        assert open_predictions(odd / name, columns)[0].labels_N.tolist() == [0, 1]


def test_on_a_full_disk_nothing_half_written_is_left(tmp_path: Path) -> None:
    few, many = predictions(3), predictions(3000)
    features = TrainingFeatures(np.zeros((2, 300, 4), np.float32), np.zeros(300, np.int64), 300)
    with full_disk():
        for save in (lambda: many.save(tmp_path / "p"), lambda: features.save(tmp_path / "f.safetensors")):
            with pytest.raises(OSError, match="File too large") as caught:
                save()
            assert caught.value.errno == errno.EFBIG and str(tmp_path) in caught.value.filename
    assert not any(tmp_path.iterdir())
    few.save(tmp_path / "p")
    wide = replace(many, columns={"words": [np.random.default_rng(i).bytes(40).hex() for i in range(3000)]})
    with full_disk(100_000), pytest.raises(OSError, match="File too large"):  # room for the tensors, and not for the table
        wide.save(tmp_path / "p")
    assert {p.name for p in tmp_path.iterdir()} == {"p.safetensors", "p.parquet"}
    assert Predictions.load(tmp_path / "p").n_samples == 3


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="InvalidTensor"), whole(tmp_path / "x"):
        raise SafetensorError("InvalidTensor")


def test_the_process_that_reloads_exports_tells_a_full_disk_from_a_bad_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloader = SimpleNamespace(NEEDS_SVE=True, answer=lambda folder, asked: ({"logits": torch.zeros(1000)}, {}))
    monkeypatch.setattr(worker, "open_reloader", lambda name: reloader)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the worker adds to it
    request = {"reloader": "any", "package": str(tmp_path), "folders": ["member-0"], "answers": str(tmp_path), "texts": ["a"]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    with full_disk(), pytest.raises(SystemExit) as stopped:
        worker.main(str(tmp_path / "request.json"))
    assert stopped.value.code == worker.CANNOT_WRITE
