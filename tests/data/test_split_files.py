"""Splits by the files behind them: the same rows cannot be trained on and tested on, however they are written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.data import load_data
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec, SplitSpec


def write(path: Path, label: str = "label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": ["a", "b"] * 10, label: ["no", "yes"] * 10}), path)
    return path


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets in the current folder, which is SVE_DATA_DIR too: tables, tables in `data`, shards, and folders of images."""
    for split in ("train", "test"):
        write(tmp_path / "str" / f"{split}.parquet")
        write(tmp_path / "inner" / "data" / f"{split}.parquet")
        for name in ("dark", "light"):
            for i in range(4):
                (folder := tmp_path / "images" / split / name).mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 3), i).save(folder / f"{i}.png")
    for i in range(2):
        write(tmp_path / "shards" / f"train-0000{i}-of-00002.parquet")
    write(tmp_path / "shards" / "test.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "str" / "train.parquet")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("./str", "train", "str/train.parquet"),
        ("./str", "str/train.parquet", "train"),
        ("./str", "train", "link.parquet"),
        ("./str/train.parquet", "train", "./str:train"),
        ("./str/train.parquet", "train", "str/train.parquet"),
        ("digits", "str:train", "./str/train.parquet"),
        ("./inner", "train", "inner/data/train.parquet"),
        ("./inner", "train", "inner/data:train"),
        ("./inner/data/train.parquet", "train", "./inner:train"),
        ("./shards", "train", "shards/train-00001-of-00002.parquet"),
        ("./images", "train", "images/train"),
        ("./images/train", "train", "images:train"),
    ],
)
def test_the_file_behind_a_split_is_that_split(here: Path, name: str, train: str, test: str) -> None:
    modality = "image" if "images" in name else "text"
    for each in (name, name.replace("./", f"{here}/")):
        with pytest.raises(DataError, match=f"data.splits uses '{train}' twice( .also as '{test}'.)?:"):
            load_data(DataSpec(each, splits=SplitSpec(train=train, validation=None, test=test)), modality, seed=0)


def test_a_set_of_the_data_folder_is_its_files_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "elsewhere")
    for test in ("../str/train.parquet", f"{here}/str:train", "str:train"):
        with pytest.raises(DataError, match="twice"):
            load_data(DataSpec("str", splits=SplitSpec(validation=None, test=test)), "text", seed=0)


@pytest.mark.parametrize(
    ("name", "test", "modality"),
    [
        ("./str", "str/test.parquet", "text"), ("./str", "inner:train", "text"), ("./str", "./inner/data/train.parquet", "text"),
        ("./str/train.parquet", "str:test", "text"), ("./images", "images/test", "image"),
    ],
)  # fmt: skip
def test_other_files_are_other_splits(here: Path, name: str, test: str, modality: str) -> None:
    data = load_data(DataSpec(name, splits=SplitSpec(validation=None, test=test)), modality, seed=0)
    assert data.train is not None and data.test is not None and len(data.test) == (20 if modality == "text" else 8)
    assert (data.train.split, data.test.split) == ("train", "train" if test == "inner:train" else "test")


def test_labels_mean_the_same_where_they_are_a_slice_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "a,1\nb,2\nc,-1\n" * 4)
    plain, sliced = (
        load_data(DataSpec(str(tmp_path), splits=SplitSpec(validation=None), slices=slices), "text", seed=0).test
        for slices in ([], ["label"])
    )
    assert plain is not None and sliced is not None and sliced.classes == plain.classes == ["0", "1", "2"]
    assert sliced.labels_N.tolist() == plain.labels_N.tolist() == [1, 2, -1] * 4 and sliced.columns == {
        "label": ["1", "2", "-1"] * 4
    }
