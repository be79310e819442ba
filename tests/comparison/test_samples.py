from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sve_cli.comparison.samples import TEST, SampleNumbers, SetNumbers, labels_of, numbers_of, paired_rows, view_of
from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

Say = Callable[[np.ndarray, list[int]], Predictions]
Make = Callable[..., Predictions]
KEPT = ("accuracy", "nll", "brier", "ece_top1_w15")


def numbers(predictions: Predictions, scaled: bool = True) -> SetNumbers:
    view = aggregate(predictions)
    entropy_N = view.entropy_N.astype(np.float32)
    found = numbers_of(view)
    return SetNumbers("toy:test", predictions.ids_N, labels_of(predictions), entropy_N, found, found if scaled else None)


def test_the_numbers_by_hand(said: Say) -> None:
    found = numbers(said(np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]), [0, 0, -1]))
    assert found.labels_N[:2] == [found.labels_N[0]] * 2 and found.labels_N[2] is None
    assert found.plain["correct"][:2].tolist() == [1.0, 0.0] and math.isnan(found.plain["correct"][2])
    assert found.plain["confidence"].tolist() == pytest.approx([0.8, 0.6, 0.7])
    assert found.plain["log_label"][:2].tolist() == pytest.approx([math.log(0.8), math.log(0.4)])
    assert found.plain["squared_error"][:2].tolist() == pytest.approx([2 * 0.2**2, 2 * 0.6**2])
    assert math.isnan(found.plain["log_label"][2]) and math.isnan(found.plain["squared_error"][2])


def test_metrics_of_what_is_kept_are_those_of_the_predictions(make: Make) -> None:
    a = make(seed=1, members=3)
    half = replace(a, labels_N=np.where(np.arange(a.n_samples) % 3 == 0, -1, a.labels_N))
    for system in (a, half):
        rows_N = np.arange(system.n_samples)[::-1]
        view = view_of(numbers(system).plain, rows_N)
        for name in KEPT:
            assert METRICS.resolve(name).compute(view) == pytest.approx(
                METRICS.resolve(name).compute(aggregate(system)), abs=1e-6
            ), name


def test_a_file_gives_back_what_was_saved(make: Make, tmp_path: Path) -> None:
    test, ood = numbers(make(seed=1)), numbers(make(seed=2), scaled=False)
    far = SetNumbers("far:test", ood.ids_N[:7], [None] * 7, ood.entropy_N[:7], {})
    one = SampleNumbers("sve-seed0-12345678", {TEST: test, "ood far": far})
    path = tmp_path / "deep" / "one.parquet"
    one.save(path)
    back = SampleNumbers.load(path)
    assert back.run == one.run and list(back.sets) == [TEST, "ood far"]
    for name, before in one.sets.items():
        after = back.sets[name]
        assert (after.source, after.ids_N, after.labels_N) == (before.source, before.ids_N, before.labels_N)
        assert np.array_equal(after.entropy_N, before.entropy_N) and (after.scaled is None) == (before.scaled is None)
        for key, values in before.plain.items():
            assert np.array_equal(after.plain[key], values, equal_nan=True)
    again = tmp_path / "again.parquet"
    back.save(again)
    assert again.read_bytes() == path.read_bytes() and [p.name for p in path.parent.iterdir()] == ["one.parquet"]


def test_a_damaged_file_is_named(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    SampleNumbers("run", {TEST: numbers(make(seed=1))}).save(path)
    whole = path.read_bytes()
    table = pq.read_table(path)
    faults = [whole[:100], b"", whole[: len(whole) // 2] + whole[len(whole) // 2 + 9 :]]
    for fault in faults:
        path.write_bytes(fault)
        with pytest.raises(SveError, match="one.parquet' is damaged") as caught:
            SampleNumbers.load(path)
        assert "Remove it" in caught.value.hint
    for damaged in (
        table.drop_columns(["entropy"]),
        table.replace_schema_metadata({}),
        table.replace_schema_metadata({"sve": "[1]"}),
    ):
        pq.write_table(damaged, path)
        with pytest.raises(SveError, match="one.parquet' is damaged"):
            SampleNumbers.load(path)
    pq.write_table(table.replace_schema_metadata({"sve": '{"format": "sve-samples/9"}'}), path)
    with pytest.raises(SveError, match="has the format sve-samples/9, not sve-samples/1"):
        SampleNumbers.load(path)


def test_rows_are_paired_by_id_and_other_labels_refused(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    shuffle = np.random.default_rng(0).permutation(60)[:50]
    one, other = numbers(a), numbers(b.subset(shuffle))
    rows = paired_rows([one, other], ["A", "B"])
    assert [one.ids_N[i] for i in rows[0]] == [other.ids_N[i] for i in rows[1]] == sorted(other.ids_N)
    with pytest.raises(SveError, match="Only 29 of the 60 samples of 'A' are also in the others"):
        paired_rows([one, numbers(b.subset(np.arange(29)))], ["A", "B"])
    labels = list(one.labels_N)
    labels[3] = "other"
    with pytest.raises(SveError, match="The label of sample 'toy0003' is '.*' in 'A' and 'other' in 'B'"):
        paired_rows([one, replace(one, labels_N=labels)], ["A", "B"])
