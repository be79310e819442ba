"""`data.slices: [length]`: the number of words of a text, in quarters named by their range."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sve_cli.data.columns import read_slices, word_counts
from sve_cli.data.tables import RawSplit
from sve_cli.errors import DataError
from sve_cli.metrics.slices import grouping


def raw(**columns: list[str]) -> RawSplit:
    return RawSplit("toy", "test", pa.table(columns), "toy")


def test_words_are_counted_where_no_column_has_the_name() -> None:
    texts = ["one", "two  words ", "", "a b\tc\nd"]
    assert read_slices(raw(text=texts), ["length"], strict=True, inputs={"text": texts}) == {"length": ["1", "2", "0", "4"]}
    assert word_counts({"text": ["a b"], "text_pair": ["c"]}) == ["3"] and word_counts({"question": ["a b"]}) == ["2"]
    own = raw(text=texts, length=["s", "m", "s", "l"])
    assert read_slices(own, ["length"], strict=True, inputs={"text": texts}) == {"length": ["s", "m", "s", "l"]}


def test_images_have_no_words() -> None:
    with pytest.raises(DataError, match="length"):
        read_slices(raw(image=["a.png"]), ["length"], strict=True, inputs={"image": ["a.png"]})


def test_quarters_are_named_by_their_range() -> None:
    found = grouping("length", word_counts({"text": ["w " * k for k in range(1, 101)]}))
    assert found is not None and found.values == ["1-25", "26-50", "51-75", "76-100"]
    assert [int((found.group_N == k).sum()) for k in range(4)] == [25, 25, 25, 25]
