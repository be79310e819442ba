"""Plausible bad data: each is a sentence for whom it concerns, never a crash, and never rows that are not there."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.data import decode_image, load_samples
from sve_cli.data.load import HELD_OUT
from sve_cli.data.sources import local_state, place_of
from sve_cli.data.tables import read_image_folder, read_table
from sve_cli.errors import DataError, SveError
from sve_cli.recipe import load_recipe
from sve_cli.recipe.spec import DataSpec
from sve_cli.samples import LazyImages


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('text\tlabel\n"Hello\tpos\nWorld\tneg\n"Bye\tpos\nx\tneg\n', "line 2, column 'text'"),
        ('label\ttext\nneg\ta\npos\t"Hello\nneg\tWorld\n', "line 3, column 'text'"),  # up to the end of the file
        ('label\ttext\nneg\ta\npos\t"Hello\nneg\tb "x" y\npos\tz\n', "line 3, column 'text'"),
        ('text\n"Hello\nWorld "x\nz\n', "line 2, column 'text'"),
        ('"text\tlabel\na\tpos\nb"\tc\n1\t2\n', "line 1, the header"),
        ('label\ttext\r\npos\t"Hello\r\nneg\tb"x\r\n', "line 2, column 'text'"),
    ],
)
def test_a_quotation_mark_takes_no_rows_in(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "a.tsv").write_bytes(text.encode())
    with pytest.raises(DataError) as found:
        read_table(tmp_path / "a.tsv")
    assert where in found.value.message and "a.tsv" in found.value.message and ".jsonl" in found.value.hint


def test_tsv_cells_that_are_quoted_as_they_should_be_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines, ""so"""\tpos\nsaid "so"\tneg\n')
    assert read_table(tmp_path / "a.tsv").to_pydict() == {"text": ['two\nlines, "so"', 'said "so"'], "label": ["pos", "neg"]}
    (tmp_path / "b.tsv").write_text('text\tlabel\n"a\tb"\tpos\n"c"\tneg\n')
    assert read_table(tmp_path / "b.tsv").to_pydict() == {"text": ["a\tb", "c"], "label": ["pos", "neg"]}


@pytest.mark.parametrize("column", ["id", "human_probs"])
def test_columns_that_are_there_twice(tmp_path: Path, column: str) -> None:
    names, shares = ["text", "label", column, column], [[1.0, 0.0], [0.0, 1.0]]
    own = ["a", "b"] if column == "id" else shares
    arrays = [pa.array(["x", "y"]), pa.array([0, 1]), pa.array(own), pa.array(own)]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"has 2 columns '{column}'"):
        load_samples(str(tmp_path / "a.parquet"), DataSpec("x"), "text")


@pytest.mark.parametrize(
    "shares", [[0.5, 0.5], ["01", "10"], [[1.0, 0.0], [None, 1.0]], [[1.0, 0.0], [2.0, -1.0]], [["a", "b"]] * 2]
)
def test_label_distributions_that_are_none(tmp_path: Path, shares: list[Any]) -> None:
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0, 1], "human_probs": shares}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'human_probs' .* must hold one number, at least 0, for each of the 2 classes"):
        load_samples(str(tmp_path / "a.parquet"), DataSpec("x"), "text")


def test_labels_beyond_63_bits(tmp_path: Path) -> None:
    columns = {"text": ["x", "y"], "question": ["x", "y"], "choices": [["a", "b"]] * 2}
    pq.write_table(pa.table({**columns, "label": pa.array([0, 2**64 - 1], pa.uint64())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"Label {2**64 - 1} .* is not a class index"):
        load_samples(str(tmp_path / "a.parquet"), DataSpec("x"), "text")
    with pytest.raises(DataError, match=f"Row 1 .* its label is {2**64 - 1}"):
        load_samples(str(tmp_path / "a.parquet"), DataSpec("x"), "multiple_choice")


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    try:
        Image.new("L", (4, 3)).save(tmp_path / "cats" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for folder in (tmp_path, tmp_path / "cats"):
        with pytest.raises(DataError, match=r"file name '.*\\udcff.png' is not UTF-8"):
            read_image_folder(folder, "image", "label")
        with pytest.raises(DataError, match="is not UTF-8"):
            load_samples(str(folder), DataSpec("x"), "image")


@pytest.mark.parametrize(
    "name", ["~nobody-at-all/x", "~nobody-at-all/x:test", "x" * 300, "x" * 300 + ":test", "d/" + "x" * 300, ""]
)
def test_names_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("sve_cli.data.sources._from_hub", lambda name, *_: (_ for _ in ()).throw(DataError(f"no hub set {name}")))
    with pytest.raises(DataError, match="no hub set|no file or folder"):
        load_samples(name, DataSpec("x"), "text")
    assert local_state(name) == "" and place_of(name)[0] == name.removesuffix(":test")
    with pytest.raises(SveError, match="no recipe file|Did you mean"):
        load_recipe(name)


def test_held_out_classes_are_meant_where_no_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="leaves none out"):
        load_samples(HELD_OUT, DataSpec("x"), "text")


def test_damaged_images_of_every_kind(tmp_path: Path) -> None:
    head = b"\x89PNG\r\n\x1a\n"
    short = b"IHDR" + bytes(3)  # a chunk that is too short for a size, with a right checksum
    chunk = len(short[4:]).to_bytes(4, "big") + short + zlib.crc32(short).to_bytes(4, "big")
    with pytest.raises(DataError, match="Cannot read an image .*Truncated IHDR"):
        decode_image(head + chunk)
    (tmp_path / "bad.png").write_bytes(head + chunk)
    with pytest.raises(DataError, match="bad.png"):
        decode_image(tmp_path / "bad.png")
    with pytest.raises(DataError, match="not uint8 \\(0, 4\\)"):
        decode_image(np.zeros((0, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="not whole numbers from 0 to 255"):
        LazyImages(pa.chunked_array([[[[0, None]]]]), None)[0]
