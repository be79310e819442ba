"""Slices, classes and numbers of bins: planted faults are found, chance is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm
from sklearn.metrics import precision_recall_fscore_support

from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.bin_choices import bin_choices
from sve_cli.metrics.per_class import per_class
from sve_cli.metrics.slices import Grouping, grouping, in_words, not_corrected, slices, upper_tail, worst
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.registry import METRICS
from sve_cli.report import Report, Slice
from sve_cli.scoring import break_down

SPEC = EvaluateSpec(bootstrap=50)


def make(n: int = 600, seed: int = 0, bad: np.ndarray | None = None, columns: dict[str, list[str]] | None = None) -> Predictions:
    """Four classes; in the rows `bad` the logits know nothing of the label, but stay as sure."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    logits = rng.normal(size=(1, n, 4)).astype(np.float32)
    said = labels if bad is None else np.where(bad, rng.integers(4, size=n), labels)
    logits[:, np.arange(n), said] += 3
    return Predictions(logits, labels, [str(i) for i in range(n)], ["a", "b", "c", "<d>"], "toy", "test", columns=columns or {})


def found(test: Predictions, seed: int = 0, bootstrap: int = 50) -> list[Slice]:
    return slices(aggregate(test), test.columns, test.classes, 15, bootstrap, 0.95, seed)


def test_a_planted_fault_is_named() -> None:
    source = ["web"] * 500 + ["phone"] * 80 + ["fax"] * 20
    test = make(bad=(np.arange(600) >= 500) & (np.arange(600) < 580), columns={"source": source})
    parts = found(test)
    assert (parts[0].column, parts[0].value) == ("source", "phone") and worst(parts) == parts[0]
    assert parts[0].n == 80 and set(parts[0].metrics) == set(parts[0].worse) == {"accuracy", "nll", "ece_top1_w15"}
    assert max(parts[0].worse.values()) < 0.001
    assert [p.value for p in parts if not p.metrics] == ["fax"] and parts[-1].worse == {}, "20 samples are too few"
    assert sorted(p.value for p in parts if p.column == "class") == ["<d>", "a", "b", "c"]
    sentence = in_words(parts)
    assert (
        sentence is not None
        and sentence.startswith("The worst slice is source = phone (right on")
        and "its accuracy, NLL and calibration error are worse" in sentence
    )
    alone = aggregate(test.subset(np.arange(500, 580)))
    for key, value in parts[0].metrics.items():
        assert value.value == pytest.approx(METRICS.resolve(key).compute(alone)) and value.low is not None and value.n == 80


def test_a_slice_that_is_only_miscalibrated_is_not_called_the_worst() -> None:
    """All of part y is right, and unsure of it; part x errs more, by no more than chance."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    right_N = np.where(np.arange(400) < 300, rng.random(400) < 0.97, True)
    logits = np.zeros((1, 400, 4), dtype=np.float32)
    logits[0, np.arange(400), np.where(right_N, labels, (labels + 1) % 4)] = np.where(np.arange(400) < 300, 4.6, 2.76)
    parts = ["x"] * 300 + ["y"] * 80 + ["z"] * 20
    test = Predictions(logits, labels, [str(i) for i in range(400)], ["a", "b", "c", "d"], "toy", "test", columns={"part": parts})
    found = [part for part in slices(aggregate(test), test.columns, test.classes, 15, 0, 0.95, 0) if part.column == "part"]
    sentence = in_words(found)
    assert worst(found) is not None and worst(found).value == "y" and sentence is not None  # type: ignore[union-attr]
    assert sentence.startswith(
        "No slice of the test set is less accurate than the rest beyond chance; the least accurate is part = x"
    )
    assert "The calibration error of part = y is worse than the rest's (16.0 %)." in sentence
    assert sentence.endswith("part = z has fewer than 30 samples and is not judged.")


def test_the_accuracy_test_is_fishers() -> None:
    test = make(n=200, columns={"half": ["x"] * 80 + ["y"] * 120})
    right = aggregate(test).correct_N
    table = [[(1 - right[:80]).sum(), right[:80].sum()], [(1 - right[80:]).sum(), right[80:].sum()]]
    raw = fisher_exact(table, alternative="greater").pvalue
    p_G = not_corrected(aggregate(test), Grouping("half", ["x", "y"], (np.arange(200) >= 80).astype(int)), 15, 0)["accuracy"]
    assert p_G[0] == pytest.approx(raw)
    corrected = next(p for p in found(test) if p.value == "x").worse["accuracy"]
    assert raw <= corrected <= 1


def test_without_a_fault_few_data_sets_name_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sve_cli.metrics.slices.PERMUTATIONS", 200)
    named = 0
    for seed in range(40):
        test = make(n=300, seed=seed, columns={"part": [str(i % 5) for i in range(300)]})
        parts = slices(aggregate(test), {**test.columns, "class": ["one"] * 300}, test.classes, 15, 0, 0.95, seed)
        assert {p.column for p in parts} == {"part"}
        named += worst(parts) is not None
    # at most 5 % of 40 is 2; 6 or more would be a chance of 1.4 %
    assert named <= 5, named


def test_the_tail_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(20_000, 2))
    assert upper_tail(np.array([2.0, 0.0]), drawn) == pytest.approx(norm.sf([2.0, 0.0]), abs=0.003)
    skewed = rng.gamma(2.0, size=(20_000, 1))  # P(X > 6) = 7 exp(-6)
    assert upper_tail(np.array([6.0]), skewed)[0] == pytest.approx(7 * math.exp(-6), rel=0.1)
    assert upper_tail(np.array([1.0]), np.ones((50, 1)))[0] == 1.0, "what never varies shows nothing"


def test_columns_of_numbers_are_cut_into_quarters() -> None:
    made = grouping("length", [str(i) for i in range(100)])
    assert (
        made is not None and made.values == ["0-24", "25-49", "50-74", "75-99"] and np.bincount(made.group_N).tolist() == [25] * 4
    )
    few = grouping("stars", ["1", "2", "3", "1"])
    assert few is not None and few.values == ["1", "2", "3"]
    assert grouping("one", ["x", "x"]) is None and grouping("text", [f"t{i}" for i in range(300)]) is None
    empty = grouping("part", ["", "x"])
    assert empty is not None and empty.values == ["(none)", "x"]
    # Some values are not known: the others are numbers all the same.
    partly = grouping("length", ["", *(str(i) for i in range(100)), ""])
    assert partly is not None and partly.values == ["0-24", "25-49", "50-74", "75-99", "(none)"]
    assert np.flatnonzero(partly.group_N == 4).tolist() == [0, 101] and partly.group_N[1:101].tolist() == made.group_N.tolist()


def test_varying_options_have_no_classes() -> None:
    mask = np.arange(4) < np.where(np.arange(600) % 2, 4, 3)[:, None]
    test = make()
    test = replace(test, mask_NC=mask, labels_N=np.minimum(test.labels_N, 2), columns={"subject": ["x", "y", "z"] * 200})
    behind = break_down(test, SPEC)
    assert behind.per_class == [] and {p.column for p in behind.slices} == {"subject"} and len(behind.bin_choices) == 6


def test_per_class_against_sklearn() -> None:
    test = make(bad=np.arange(600) < 300)
    test = replace(test, labels_N=np.where(test.labels_N == 3, 2, test.labels_N))  # the last class never occurs
    view = aggregate(test)
    rows = per_class(view, 15, test.classes)
    expected = precision_recall_fscore_support(test.labels_N, view.predicted_N, labels=range(4), zero_division=0)
    for c, row in enumerate(rows):
        assert (row.precision, row.f1, row.support) == pytest.approx((expected[0][c], expected[2][c], expected[3][c]))
        assert (row.recall is None) if c == 3 else (row.recall == pytest.approx(expected[1][c]))
    assert np.mean([row.ece for row in rows]) == pytest.approx(METRICS.resolve("ece_class_w15").compute(view))


def test_number_of_bins() -> None:
    view = aggregate(make())
    rows = bin_choices(view)
    assert [row.bins for row in rows] == [5, 10, 15, 20, 30, 50]
    assert rows[2].width == METRICS.resolve("ece_top1_w15").compute(view) and rows[2].mass == METRICS.resolve(
        "ece_top1_m15"
    ).compute(view)


def test_partly_and_fully_unlabelled() -> None:
    test = make(columns={"half": ["x"] * 300 + ["y"] * 300})
    some = replace(test, labels_N=np.where(np.arange(600) % 3 == 0, -1, test.labels_N))
    assert sum(p.n for p in found(some) if p.column == "half") == 400
    none = break_down(replace(test, labels_N=np.full(600, -1)), SPEC)
    assert none == ([], [], [], [], None, [])


def test_addresses_and_files(tmp_path: Path) -> None:
    behind = break_down(make(columns={"half": ["x"] * 590 + ["y"] * 10}), SPEC)
    report = Report(
        "t", [], [], "d", "test", 600, ["a"], bin_choices=behind.bin_choices, per_class=behind.per_class, slices=behind.slices
    )
    assert report.metric("slice.half.x.accuracy").n == 590 and "slice.half.y.accuracy" not in report.addresses()
    path = tmp_path / "report.json"
    path.write_text(report.to_json())
    assert Report.load(path) == report
    raw = json.loads(report.to_json())
    for key in ("bin_choices", "per_class", "slices", "decisions"):
        raw.pop(key)
    path.write_text(json.dumps(raw))
    assert Report.load(path).slices == [], "older reports have none"


def test_every_group_has_an_address_of_its_own() -> None:
    found = grouping("ts", [str(1_700_000_000 + i) for i in range(800)])
    assert found is not None and len(set(found.values)) == 4
    assert found.values[0] == "1700000000-1700000199" and np.bincount(found.group_N).tolist() == [200] * 4
    both = grouping("city", ["", "(none)", "Oslo", ""])
    assert both is not None and both.values == ["(none)", "Oslo"] and both.group_N.tolist() == [0, 0, 1, 0]
    short = grouping("x", [str(i / 7) for i in range(40)])
    assert short is not None and short.values[0] == "0-1.28571"
