"""What `sve predict` reads: texts, questions and images from every kind of file, and what it says of what it cannot read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.errors import DataError, SveError
from sve_cli.recipe import Recipe, resolve_dict
from sve_cli.workflows.predict_inputs import read_given, too_many_options
from sve_cli.workflows.serving_inputs import to_samples, two_inputs

ROWS = [{"id": "a", "text": "red sky"}, {"id": "b", "text": " "}, {"id": "c", "text": "17"}]
ITEMS: list[dict[str, object]] = [
    {"id": "two", "question": "Is it?", "choices": ["yes", "no"], "context": "It is."},
    {"id": "four", "question": "Which?", "choices": ["a", "b", "c", "d"]},
    {"id": "one", "question": "Which?", "choices": ["a"]},
    {"id": "none", "question": "Which?", "choices": None},
    {"id": "empty", "question": "", "choices": ["yes", "no"]},
]


def recipe(task: str, **data: object) -> Recipe:
    plain = {"model": {"name": "-"}, "data": {"name": "-", **data}, "task": {"name": task}, "method": {"name": "sve"}}
    return resolve_dict(plain, "test")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:

        def cell(value: object) -> str:
            text = json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)
            return '"' + text.replace('"', '""') + '"'

        gap = "\t" if path.suffix == ".tsv" else ","
        lines = [gap.join(names), *(gap.join(cell(row.get(name)) for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_texts_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    given = read_given(recipe("text_classification"), str(write_table(tmp_path / f"t{suffix}", ROWS)), ())
    assert given.ids == ["a", "b", "c"] and given.samples.ids_N == ["a", "c"]
    assert list(given.samples.inputs["text"]) == ["red sky", "17"], "what looks like a number stays text"
    assert given.errors == {"b": "The text is empty."} and given.notes == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_questions_with_different_numbers_of_options(tmp_path: Path, suffix: str) -> None:
    given = read_given(recipe("multiple_choice"), str(write_table(tmp_path / f"q{suffix}", ITEMS)), ())
    assert given.samples.ids_N == ["two", "four"] and given.ids == ["two", "four", "one", "none", "empty"]
    assert given.samples.inputs["choices"] == [["yes", "no"], ["a", "b", "c", "d"]]
    assert given.samples.inputs["context"] == ["It is.", ""]
    assert list(given.errors) == ["one", "none", "empty"], "in the order of the rows"
    assert "at least two choices" in given.errors["one"] and "(column 'choices')" in given.errors["none"]
    assert given.errors["empty"] == "The text is empty. (column 'question')"
    few = given.without(too_many_options(given.samples, 3))
    assert few.samples.ids_N == ["two"] and few.errors["four"].startswith("The question has 4 options") and len(few.errors) == 4
    with pytest.raises(DataError, match="No input could be read"):
        few.without({"two": "gone"})


def test_lines_of_a_text_file_are_texts_or_paths(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("red sky\n\ngrün\n", encoding="utf-8")
    given = read_given(recipe("text_classification"), str(tmp_path / "t.txt"), ())
    assert list(given.samples.inputs["text"]) == ["red sky", "grün"] and list(given.errors) == ["input-1"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "p.txt").write_text("gone.png\na.png\n", encoding="utf-8")
    images = read_given(recipe("image_classification"), str(tmp_path / "p.txt"), ())
    assert images.ids == ["gone.png", "a.png"] and images.samples.ids_N == ["a.png"]
    assert images.errors["gone.png"] == f"There is no image '{tmp_path / 'gone.png'}'."


def test_a_bad_image_costs_its_own_row_alone(tmp_path: Path) -> None:
    """Also the first: a missing path, an empty cell, and a file that is no image."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    rows = [{"id": str(i), "image": path} for i, path in enumerate(["gone.png", None, "bad.png", "a.png"])]
    for suffix in (".csv", ".parquet"):
        given = read_given(recipe("image_classification"), str(write_table(tmp_path / f"i{suffix}", rows)), ())
        assert given.samples.ids_N == ["3"] and list(given.errors) == ["0", "1", "2"]
        assert given.errors["1"] == "The row names no image." and "Cannot read an image" in given.errors["2"]


def test_ids_that_are_not_unique_are_said(tmp_path: Path) -> None:
    given = read_given(recipe("text_classification"), str(write_table(tmp_path / "t.csv", [ROWS[0], ROWS[0]])), ())
    assert given.ids == ["input-0", "input-1"] and "'id'" in given.notes[0] and "not unique" in given.notes[0]


@pytest.mark.parametrize(
    ("task", "name", "content", "saying", "hint"),
    [
        ("text_classification", "t.csv", "b,label\n1,2\n", "column 'text'; its columns are b, label", "the column 'text'"),
        ("multiple_choice", "t.csv", "text\na\n", "has no columns 'question', 'choices'", "the columns 'question' and 'choices'"),
        ("image_classification", "t.csv", "path\na.png\n", "has no column 'image'", "one path a line"),
        ("text_classification", "t.csv", "", "t.csv' is empty", "csv, tsv, jsonl"),
        ("text_classification", "t.csv", "text\n", "has no rows", "one input a row"),
        ("text_classification", "t.xlsx", "x", "is a .xlsx file, which this run cannot read", "a .txt file with one text a line"),
        ("multiple_choice", "t.txt", "x", "is a .txt file, which this run cannot read", "'question' and 'choices'"),
        ("image_classification", "a.png", "no image", "No input could be read", "Cannot read an image"),
        ("text_classification", "t.jsonl", '{"text": "a"}\n{oops\n', "line 2 is no JSON", "repair"),
        ("text_classification", "t.parquet", "x", "Cannot read", "repair"),
        ("text_classification", "t.csv", b"text\ncaf\xe9\n", "Cannot read", "repair"),
        ("text_classification", "t.txt", b"caf\xe9\n", "Cannot read", "UTF-8"),
        ("text_classification", "t.csv", 'text\n""\n', "No input could be read", "The text is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path: Path, task: str, name: str, content: str | bytes, saying: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SveError) as found:
        read_given(recipe(task), str(path), ())
    assert saying in found.value.message and hint in found.value.hint, (found.value.message, found.value.hint)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_ends_end_lines(tmp_path: Path, end: str) -> None:
    texts = ["one\u2028two", "three\u0085four", "five\fsix\v\x1cseven", "", "last"]
    for last in ("", end):
        (tmp_path / "t.txt").write_bytes((end.join(texts) + last).encode())
        given = read_given(recipe("text_classification"), str(tmp_path / "t.txt"), ())
        assert given.ids == [f"input-{i}" for i in range(5)] and list(given.errors) == ["input-3"]
        assert list(given.samples.inputs["text"]) == [text for text in texts if text]


def test_every_image_of_a_folder_is_taken(tmp_path: Path) -> None:
    names = ["0.png", "1.png", "2.PNG", "thumbs/0.png", "thumbs/x.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    given = read_given(recipe("image_classification"), str(tmp_path), ())
    assert given.ids == given.samples.ids_N == names and given.errors == {}
    assert [path for path in given.samples.inputs["image"]] == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("task", "column"), [("text_classification", "text"), ("image_classification", "image"), ("multiple_choice", "choices")]
)
@pytest.mark.parametrize("twice", ["id", ""])
def test_a_column_that_is_there_twice(tmp_path: Path, task: str, column: str, twice: str) -> None:
    header, name = ["id", "question", column], twice or column
    (tmp_path / "t.csv").write_text(",".join([*header, name]) + "\na,b,c,d\n")
    with pytest.raises(DataError, match=f"has 2 columns '{name}'"):
        read_given(recipe(task), str(tmp_path / "t.csv"), ())


@pytest.mark.parametrize("source", ["~nobody-at-all/x", "x" * 300, ""])
def test_a_source_that_no_file_can_be(source: str) -> None:
    with pytest.raises(DataError) as found:
        read_given(recipe("text_classification"), source, ())
    assert found.value.message == f"There is no file or folder '{source}'." and "--text" in found.value.hint


def test_what_is_no_text(tmp_path: Path) -> None:
    broken = os.fsdecode(b"\xff")
    with pytest.raises(DataError, match="behind --text is not UTF-8"):
        read_given(recipe("text_classification"), None, ["fine", broken])
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{broken}.png")
    except OSError:
        return  # this file system takes UTF-8 names only
    for source in (tmp_path, tmp_path / f"{broken}.png"):
        with pytest.raises(DataError, match="file name .* is not UTF-8"):
            read_given(recipe("image_classification"), str(source), ())


def test_a_folder_is_for_images(tmp_path: Path) -> None:
    with pytest.raises(SveError, match="is a folder, which this run cannot read"):
        read_given(recipe("text_classification"), str(tmp_path), ())
    with pytest.raises(SveError, match="holds no images"):
        read_given(recipe("image_classification"), str(tmp_path), ())


def test_pairs_of_texts_need_both(tmp_path: Path) -> None:
    pairs = recipe("text_classification", text="a", text_pair="b")
    given = read_given(pairs, str(write_table(tmp_path / "t.csv", [{"a": "x", "b": "y"}, {"a": "x", "b": ""}])), ())
    assert given.samples.inputs["text_pair"] == ["y"] and given.errors == {"input-1": "The text is empty. (column 'b')"}
    with pytest.raises(SveError, match="--text is for single texts"):
        read_given(pairs, None, ["x"])


def test_answers_to_questions_do_not_depend_on_each_other(sve: Any, lab: Any, tmp_path: Path) -> None:
    """Questions with two and three options, asked together and alone: the same numbers, in nats, and the option's own text."""
    (tmp_path / "data").mkdir()
    options = ["red", "green", "blue"]
    for split, n in (("train", 12), ("validation", 12), ("test", 6)):
        rows = [
            {"question": f"What color is {'very ' * (i % 3)}{options[i % 3]} ?", "choices": options, "label": i % 3}
            for i in range(n)
        ]
        write_table(tmp_path / "data" / f"{split}.jsonl", rows)
    settings = ["method.members=2", "train.epochs=1", "train.precision=float32", "evaluate.bootstrap=0", "--out", tmp_path / "run"]
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: {lab.root / 'llama'}}}\ndata: {{name: {tmp_path / 'data'}}}\n"
        "task: {name: multiple_choice}\nmethod: {name: sve}\n",
        encoding="utf-8",
    )
    sve("train", "r.yaml", *settings)
    asked = [{"id": "three", "question": "What color is grass ?", "choices": options},
             {"id": "two", "question": "is fire red ?", "choices": ["yes", "no"]},
             {"id": "four", "question": "What ?", "choices": ["yes", "no", "so", "not"]}]  # fmt: skip
    together = sve.json("predict", tmp_path / "run", write_table(tmp_path / "q.jsonl", asked))["rows"]
    assert [row["id"] for row in together] == ["three", "two", "four"]
    assert together[2]["label"] is None and "at most 3" in together[2]["error"]
    for row, item in zip(together[:2], asked, strict=False):
        (alone,) = sve.json("predict", tmp_path / "run", write_table(tmp_path / "one.jsonl", [item]))["rows"]
        for name in ("entropy", "aleatoric", "epistemic", "confidence", "ood_score"):
            assert alone[name] == pytest.approx(row[name], abs=1e-4), name
        probs = row["probabilities"]
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in probs.values()), abs=1e-6)
        assert list(probs) == ["A", "B", "C"][: len(item["choices"])]
        assert row["choice"] == item["choices"]["ABC".index(row["label"])] and max(probs, key=probs.get) == row["label"]
    shown = sve("predict", tmp_path / "run", tmp_path / "q.jsonl", "--out", "o.csv")
    assert f"{together[1]['label']}: {together[1]['choice']}" in shown and f",{together[1]['choice']}," in Path("o.csv").read_text()


@pytest.mark.parametrize("choices", ["yes", 5, ["a"], [1, 2], None])
def test_options_are_several_texts(choices: Any) -> None:
    with pytest.raises(DataError, match="questions with options"):
        to_samples([{"question": "Which?", "choices": choices}], "multiple_choice", False)
    found = to_samples([{"question": "Which?", "choices": ("a", "b")}], "multiple_choice", False)
    assert found.inputs["choices"] == [["a", "b"]]


def test_an_open_image_is_read_as_its_file_is(tmp_path: Path) -> None:
    """Pillow would cut what is above 255 off."""
    deep, plain = Image.fromarray(np.arange(0, 64000, 1000, dtype=np.uint16).reshape(8, 8)), Image.new("LA", (4, 3), (7, 9))
    for name, image in (("deep.png", deep), ("plain.png", plain)):
        image.save(tmp_path / name)
    with Image.open(tmp_path / "deep.png") as opened:
        for mode in (opened, deep, deep.convert("I"), deep.convert("F")):
            with pytest.raises(DataError, match=r"more than 8 bits a channel .* Scale the images to 8 bits"):
                to_samples(mode, "image", False)
    (tmp_path / "torn.png").write_bytes((tmp_path / "plain.png").read_bytes()[:50])
    with Image.open(tmp_path / "torn.png") as torn, pytest.raises(DataError, match="Cannot read an image .* Replace the file"):
        to_samples(torn, "image", False)  # only its head is read before
    found = to_samples([plain, np.asarray(plain.convert("RGB"))], "image", False).inputs["image"]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(("modality", "pairs"), [("text", False), ("text", True), ("image", False), ("multiple_choice", False)])
def test_the_two_fixed_inputs_differ_and_are_always_the_same(modality: str, pairs: bool) -> None:
    first, again = two_inputs(modality, pairs), two_inputs(modality, pairs)
    assert len(first) == 2
    for name, column in first.inputs.items():
        np.testing.assert_array_equal(np.asarray(column), np.asarray(again.inputs[name]))
    (a, b) = first.inputs["question" if modality == "multiple_choice" else modality]
    assert not np.array_equal(a, b)
