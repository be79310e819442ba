"""Where names lead: local paths first, then the package, SVE_DATA_DIR, the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sve_cli.data import load_data, load_samples
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": [text] * 2, "label": ["a", "b"]}), folder / "test.parquet")


def first_text(name: str) -> str:
    return str(load_samples(name, DataSpec("x"), "text").inputs["text"][0])


def test_local_path_wins_over_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shelf" / "mine", "shelf")
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path / "shelf"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert first_text("mine") == first_text("mine:test") == "shelf"
    write(tmp_path / "here" / "mine", "here")
    assert first_text("mine") == "here"
    write(tmp_path / "here" / "digits", "here")
    assert first_text("digits") == "here"


def test_missing_split_lists_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "set", "x")
    pq.write_table(pa.table({"text": ["x"], "label": ["a"]}), tmp_path / "set" / "dev.parquet")
    with pytest.raises(DataError, match="no split 'tset'; it has dev, test.*Did you mean 'test'"):
        first_text(f"{tmp_path / 'set'}:tset")
    with pytest.raises(DataError, match="no train split"):
        load_data(DataSpec(str(tmp_path / "set")), "text", seed=0)


def test_unreachable_hub_is_a_data_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    fake = SimpleNamespace(load_dataset=refuse, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    write(tmp_path / "reviews", "x")
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="no network") as error:
        first_text("review")
    assert "SVE_DATA_DIR" in error.value.hint and "Did you mean 'reviews'?" in error.value.hint
    with pytest.raises(DataError, match="no data set 'not a name'"):
        first_text("not a name")


def test_hub_sets_keep_their_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "one"])})
    part = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, 1]}, features=features)
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.extend([name, config, revision])
        return datasets.DatasetDict({"train": part, "validation": part, "test": part})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_data(DataSpec("someone/some-set", config="v1", revision="main"), "text", seed=0)
    assert asked == ["someone/some-set", "v1", "main"]
    assert data.test is not None and data.test.classes == ["zero", "one"] and data.test.labels_N.tolist() == [1, 0, 1]
