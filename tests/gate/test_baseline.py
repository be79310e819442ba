"""The baseline file: small, exact, and refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.gate import Baseline, differing, load_baseline, metrics_by_key, pair, samples_of
from sve_cli.metrics.aggregate import aggregate
from sve_cli.posthoc.state import Posthoc
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.workflows.evaluate import build_report
from sve_cli.workflows.gate_sides import Judged, baseline_of


def baseline(predictions: Predictions) -> Baseline:
    report = build_report("made", predictions, [], EvaluateSpec(bootstrap=20), Posthoc(), None, 0, [])
    return baseline_of(Judged("made", predictions, report))


def test_metrics_from_the_file_equal_the_report_and_the_file_is_small(make: Callable[..., Predictions]) -> None:
    test = make(n=4500)
    text = baseline(test).to_json()
    assert len(text.encode()) < 110_000
    read = load_baseline(Path("base.json"), json.loads(text))
    view = aggregate(test)
    assert {"accuracy", "nll", "brier", "ece_top1_w15", "ece_top1_m15", "mce_top1_w15", "aurc"} <= set(read.paired)
    assert not {"macro_f1", "ece_class_w15", "entropy_mean"} & set(read.paired)
    for key in read.paired:
        metric = metrics_by_key(15)[key]
        assert metric.compute(read.samples.view()) == pytest.approx(metric.compute(view), abs=1e-6), key
        assert read.values[key].value == pytest.approx(metric.compute(view), abs=1e-6)
    assert read.samples.ids_N == test.ids_N and (read.samples.labels_N == test.labels_N).all()


@pytest.mark.parametrize("kind", ["sure", "two levels", "one class option"])
def test_edges_are_stored_exactly(make: Callable[..., Predictions], kind: str) -> None:
    """Confidence 1.0, confidences on the bins' edges, and samples with one option."""
    test = make(n=40)
    logits_MNC = test.logits_MNC.copy()
    if kind == "sure":
        logits_MNC *= 100.0
    elif kind == "two levels":
        logits_MNC[:] = np.log(np.array([0.6, *[0.4 / 9] * 9]))
        logits_MNC[:, ::2] = np.log(np.array([0.8, *[0.2 / 9] * 9]))
    else:
        test = replace(test, mask_NC=np.eye(10, dtype=bool)[test.labels_N])
    test = replace(test, logits_MNC=logits_MNC.astype(np.float32))
    read = load_baseline(Path("b"), json.loads(baseline(test).to_json()))
    assert {"accuracy", "nll", "brier", "ece_top1_w15"} <= set(read.paired) and differing(read) == []


@pytest.mark.parametrize("how", ["cut", "no base64", "value", "count", "key"])
def test_a_damaged_file_is_refused(make: Callable[..., Predictions], how: str) -> None:
    raw: dict[str, Any] = json.loads(baseline(make(n=50)).to_json())
    if how == "cut":
        raw["samples"] = raw["samples"][:-2]
    elif how == "no base64":
        raw["samples"][0] = "é" + raw["samples"][0][1:]
    elif how == "value":
        raw["values"]["nll"][0] += 0.01
    elif how == "count":
        raw["values"]["nll"].append(1)
    else:
        del raw["bins"]
    with pytest.raises(SveError, match="baseline file 'b'") as caught:
        load_baseline(Path("b"), raw)
    assert "sve gate baseline" in caught.value.hint


def test_pairing_is_by_id_and_refuses_what_does_not_fit(make: Callable[..., Predictions]) -> None:
    first = make(n=100)
    order = np.random.default_rng(3).permutation(100)
    shuffled = first.subset(order)
    one, other = (samples_of(aggregate(p), p.ids_N, p.classes) for p in (first, shuffled))
    a, b, notes = pair(one, other, 0.05)
    assert a.ids_N == b.ids_N and (a.confidence_N == b.confidence_N).all() and notes == []
    fewer = other.take(np.arange(96))
    assert "4 of the 100 samples of the baseline" in pair(one, fewer, 0.05)[2][0]
    with pytest.raises(SveError, match="6 of the 100 samples of the baseline .6.0 %.* at most 5.0 %"):
        pair(one, other.take(np.arange(94)), 0.05)
    wrong = replace(other, labels_N=(other.labels_N + 1) % 10)
    with pytest.raises(SveError, match="label of sample"):
        pair(one, wrong, 0.05)
    renamed = replace(other, classes=[f"x{c}" for c in range(10)])
    assert "matched by their number" in pair(one, renamed, 0.05)[2][0]
    permuted = replace(other, classes=other.classes[::-1], labels_N=9 - other.labels_N)
    assert pair(one, permuted, 0.05)[2] == [], "the same classes in another order"
