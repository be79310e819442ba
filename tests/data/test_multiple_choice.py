"""Multiple choice: choices and labels in every stored form."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sve_cli.data import load_samples
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec

CHOICES = [["red", "blue"], ["1", "2", "3"]]


def load(path: Path, columns: dict[str, object]) -> list[int]:
    pq.write_table(pa.table({"question": ["a?", "b?"], **columns}), path)
    samples = load_samples(str(path), DataSpec("x"), "multiple_choice")
    assert list(samples.inputs["choices"]) == CHOICES and list(samples.inputs["context"]) == ["", ""]
    assert samples.classes == []
    return samples.labels_N.tolist()


@pytest.mark.parametrize(
    ("label", "expected"), [([1, 2], [1, 2]), (["B", "c"], [1, 2]), (["blue", "3"], [1, 2]), ([None, 0], [-1, 0])]
)
def test_labels_as_index_letter_or_text(tmp_path: Path, label: list[object], expected: list[int]) -> None:
    assert load(tmp_path / "x.parquet", {"choices": CHOICES, "label": label}) == expected


def test_a_column_means_one_thing(tmp_path: Path) -> None:
    def labels(choices: list[list[str]], texts: list[str]) -> list[int]:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"question": ["q"] * len(texts), "choices": choices, "label": texts}), path)
        return load_samples(str(path), DataSpec("x"), "multiple_choice").labels_N.tolist()

    assert labels([["C", "A", "D"], ["x", "y", "z"]], ["A", "A"]) == [0, 0]  # letters fit both rows, texts only the first
    assert labels([["3", "2", "1", "0"], ["a", "b", "c", "d"]], ["0", "2"]) == [0, 2]
    assert labels([["A", "B"], ["A", "B"]], ["A", "B"]) == [0, 1]  # both ways mean the same
    with pytest.raises(DataError, match="can be read by text or letter of the options"):
        labels([["C", "A", "B"], ["B", "C", "A"]], ["A", "B"])


def test_choices_as_json_and_as_texts_with_keys(tmp_path: Path) -> None:
    assert load(tmp_path / "x.parquet", {"choices": ['["red", "blue"]', '["1", "2", "3"]'], "label": [0, 1]}) == [0, 1]
    keyed = [{"text": CHOICES[0], "label": ["A", "B"]}, {"text": CHOICES[1], "label": ["C", "A", "B"]}]
    assert load(tmp_path / "y.parquet", {"choices": keyed, "label": ["B", "B"]}) == [1, 2]


def test_label_outside_the_choices_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Row 0 .* has 2 choices, but its label is 2"):
        load(tmp_path / "x.parquet", {"choices": CHOICES, "label": [2, 2]})
    with pytest.raises(DataError, match="label is 'green'"):
        load(tmp_path / "x.parquet", {"choices": CHOICES, "label": ["green", "1"]})


def test_choices_that_are_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Row 0 .* no list of at least two choices"):
        load(tmp_path / "x.parquet", {"choices": ["red or blue", "1"], "label": [0, 0]})
