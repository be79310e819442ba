"""`set:split` named in the place of a split: the rows of another set, its classes matched by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from sve_cli.data import load_data, load_samples
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec, SplitSpec

CLASSES = ["ant", "bee", "cow"]


def write(folder: Path, split: str, classes: list[str], labels: list[int], shares: list[list[float]] | None = None) -> None:
    """A split with class names in its types, texts that name the class, and label distributions if given."""
    columns = {"text": [f"{split} {classes[c]}" for c in labels], "label": labels}
    types = {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": classes, "_type": "ClassLabel"}}}
    table = pa.table({**columns, **({"human_probs": shares} if shares else {})})
    folder.mkdir(exist_ok=True)
    stored = table.replace_schema_metadata({"huggingface": json.dumps({"info": types})})
    pyarrow.parquet.write_table(stored, folder / f"{split}.parquet")


@pytest.fixture()
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path))
    write(tmp_path / "home", "train", CLASSES, [0, 1, 2] * 10)
    write(tmp_path / "home", "test", CLASSES, [0, 1, 2])
    return tmp_path


def test_classes_of_another_set_are_matched_by_name(home: Path) -> None:
    write(home / "away", "test", ["cow", "ant", "bee"], [0, 1, 2], [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    data = load_data(DataSpec("home", splits=SplitSpec(validation=None, test="away:test")), "text", seed=0)
    assert data.test is not None and data.train is not None
    assert (data.test.dataset, data.test.split, data.test.classes) == ("away", "test", CLASSES)
    assert list(data.test.inputs["text"]) == ["test cow", "test ant", "test bee"] and data.test.labels_N.tolist() == [2, 0, 1]
    assert data.test.soft_labels_NC is not None
    np.testing.assert_allclose(data.test.soft_labels_NC, [[0.25, 0.0, 0.75], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    alone = load_data(DataSpec("home", splits=SplitSpec(validation=None, test="away:test")), "text", seed=0, need=("test",)).test
    assert alone is not None and alone.labels_N.tolist() == [2, 0, 1]  # train decides the order, whether it is loaded or not


def test_other_class_names_are_refused(home: Path) -> None:
    write(home / "away", "test", ["ant", "bee", "dog"], [0, 1, 2])
    with pytest.raises(DataError, match=r"Label 'dog' of '.*away/test.parquet'.*'away' are matched with those of 'home' by name"):
        load_data(DataSpec("home", splits=SplitSpec(validation=None, test="away:test")), "text", seed=0)


def test_a_split_that_the_other_set_lacks(home: Path) -> None:
    write(home / "away", "test", CLASSES, [0])
    with pytest.raises(DataError, match="'away' has no split 'dev'; it has test.*data.splits.test"):
        load_data(DataSpec("home", splits=SplitSpec(validation=None, test="away:dev")), "text", seed=0)


def test_the_same_rows_under_two_names_are_refused(home: Path) -> None:
    with pytest.raises(DataError, match="uses 'train' twice"):
        load_data(DataSpec("home", splits=SplitSpec(validation=None, test="home:train")), "text", seed=0)


def test_cifar10_judged_on_cifar10h() -> None:
    folder = os.environ.get("SVE_DATA_DIR")
    if not folder or not all((Path(folder) / name).is_dir() for name in ("cifar10", "cifar10h")):
        pytest.skip("SVE_DATA_DIR does not point at a folder that holds cifar10 and cifar10h.")
    spec = DataSpec("cifar10", splits=SplitSpec(validation=None, test="cifar10h:test"))
    data = load_data(spec, "image", seed=0, limit=400)
    assert data.train is not None and data.test is not None and data.test.soft_labels_NC is not None
    assert data.train.soft_labels_NC is None and data.test.classes == data.train.classes and data.test.dataset == "cifar10h"
    assert (data.test.soft_labels_NC.argmax(axis=1) == data.test.labels_N).mean() > 0.97
    assert len({bytes(i) for i in data.train.inputs["image"]} & {bytes(i) for i in data.test.inputs["image"]}) == 0


def test_files_in_the_place_of_splits_are_the_split_of_their_role(home: Path) -> None:
    for name in ("a", "b"):
        write(home, name, CLASSES, [0, 1, 2] * 4)
    files = SplitSpec(train=str(home / "a.parquet"), validation=None, test=str(home / "b.parquet"))
    data = load_data(DataSpec("home", splits=files), "text", seed=0)
    assert data.train is not None and data.test is not None and data.test.split == "test"
    assert data.test.ids_N[0] == "test-0" and not set(data.test.ids_N) & set(data.train.ids_N)


@pytest.mark.parametrize("modality", ["text", "multiple_choice"])
def test_a_set_that_is_read_without_its_labels_may_have_any(home: Path, modality: str) -> None:
    columns = {
        "text": ["a", "b"],
        "question": ["a", "b"],
        "choices": [["x", "y"]] * 2,
        "label": [0.5, 4.8],
        "human_probs": [[1.0], None],
    }
    pyarrow.parquet.write_table(pa.table(columns), home / "scores.parquet")
    found = load_samples(str(home / "scores.parquet"), DataSpec("home"), modality, labels=False)
    assert found.labels_N.tolist() == [-1, -1] and found.soft_labels_NC is None
    with pytest.raises(DataError, match="holds double values|its label is"):
        load_samples(str(home / "scores.parquet"), DataSpec("home"), modality)


@pytest.mark.parametrize(
    ("train", "test", "classes", "codes"),
    [
        (["True", "False"], ["True", "maybe", "False"], None, None),
        (["True", "False", "maybe"], ["True", "True"], ["False", "True", "maybe"], [1, 1]),
        (["01", "02", "A1"], ["02", "01"], ["01", "02", "A1"], [1, 0]),
        (["0", "2", "1"], ["2", "", "NA"], ["0", "1", "2"], [2, -1, -1]),
        (["0", "NA", "1"], ["-1", "1"], ["0", "1"], [-1, 1]),
        (["2024-01-01", "other"], ["2024-01-01"], ["2024-01-01", "other"], [0]),
    ],
)
def test_labels_of_csv_files_mean_the_same_in_every_split(
    home: Path, train: list[str], test: list[str], classes: list[str] | None, codes: list[int] | None
) -> None:
    for name, labels in (("train", train * 4), ("test", test)):
        (home / "csv").mkdir(exist_ok=True)
        (home / "csv" / f"{name}.csv").write_text("text,label\n" + "".join(f"a{i},{y}\n" for i, y in enumerate(labels)))
    spec = DataSpec("csv", splits=SplitSpec(validation=None))
    if classes is None:
        with pytest.raises(DataError, match="Label 'maybe' .* does not occur"):
            load_data(spec, "text", seed=0)
        return
    data = load_data(spec, "text", seed=0)
    assert data.test is not None and data.test.classes == classes and data.test.labels_N.tolist() == codes


def test_a_csv_file_without_any_label_has_none(home: Path) -> None:
    (home / "bare.csv").write_text("text,label\na,NA\nb,\nc,nan\n")
    found = load_samples(str(home / "bare.csv"), DataSpec("home"), "text")
    assert found.labels_N.tolist() == [-1, -1, -1] and found.classes == []


def test_numbers_that_are_no_classes_are_refused_in_csv_files_too(home: Path) -> None:
    (home / "train.csv").write_text("text,label\na,0.5\nb,1\nc,2e3\n")
    with pytest.raises(DataError, match="holds double values"):
        load_samples(str(home / "train.csv"), DataSpec("home"), "text")
