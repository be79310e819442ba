"""Slack from repeated evaluations, and how it is written into a gate file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sve_cli.errors import SveError
from sve_cli.gate import GateSpec, how_sure, learn, learn_all, new_gate_file, parse_gates, with_slacks
from sve_cli.report import MetricValue

FILE = """\
# our gates
baseline: base.json   # committed
confidence: 0.9

gates:
  # calibration first
  ece_top1_w15: {limit: 0.05, slack: 1e-3}  # points
  nll:
    # soft
    relative_slack: 0.1
    limit: 2.0
  "slice.domain.new york, NY.accuracy": {detect: 0.2, limit: 0.5}
"""


def test_the_slack_is_the_largest_pairwise_worsening_rounded_up() -> None:
    found = learn("nll", "lower", [0.500, 0.5123, 0.5061])
    assert found.pairs == 3 and found.largest == pytest.approx(0.0123) and found.usual == pytest.approx(0.0062)
    assert found.slack == 0.013 >= found.largest
    assert learn("accuracy", "higher", [0.5123, 0.5, 0.5061]).slack == 0.013, "either order, either direction"
    assert learn("nll", "lower", [0.500, 0.5123, 0.5061], 0.5).slack == 0.0062, "no smaller than half of the pairs"
    assert learn("nll", "lower", [0.5, 0.5 + 9e-6]).slack == 0.0, "arithmetic: no gate fails on it"
    assert learn("nll", "lower", [123.0, 5.0]).slack == 120.0 and learn("nll", "lower", [0.0, 0.012]).slack == 0.012


@pytest.mark.parametrize(
    ("values", "direction", "quantile", "saying"),
    [([1.0], "lower", 1.0, "nothing to differ from"), ([1.0, float("nan")], "lower", 1.0, "not a finite number"),
     ([1.0, 2.0], "none", 1.0, "no better side"), ([1.0, 2.0], "lower", 0.0, "quantile"), ([1.0, 2.0], "lower", 1.1, "quantile")],
)  # fmt: skip
def test_what_gives_no_slack(values: list[float], direction: str, quantile: float, saying: str) -> None:
    with pytest.raises(SveError, match=saying):
        learn("nll", direction, values, quantile)  # type: ignore[arg-type]


def test_how_far_it_can_be_trusted_is_said() -> None:
    text, few = how_sure(2, 1.0)
    assert few and "one pairwise worsening, of 2 evaluations" in text and "one further evaluation in 3" in text and "few" in text
    text, few = how_sure(3, 1.0, 1)
    assert not few and "batch size alone" in text and "further" not in text, "one run again is no further training"
    text, few = how_sure(6, 1.0, 2)
    assert few and "15 pairwise worsenings" in text and "one further run in 3" in text and "5 runs give 10 pairs" in text
    text, few = how_sure(6, 0.9)
    assert not few and "the 90 % quantile of 15 pairwise worsenings among 6 evaluations" in text and "few" not in text


def test_a_missing_metric_and_a_slack_that_reaches_detect_are_refused() -> None:
    tables = [{"nll": MetricValue(v, 10, "lower", "")} for v in (0.4, 0.5)]
    assert learn_all(tables, ["nll"], 1.0, {"nll": GateSpec(slack=0.02)})[0].before == 0.02
    with pytest.raises(SveError, match="has a metric 'brier'"):
        learn_all(tables, ["brier"], 1.0, {})
    with pytest.raises(SveError, match="it never could"):
        learn_all(tables, ["nll"], 1.0, {"nll": GateSpec(slack=0.02, detect=0.05)})


def test_a_gate_file_keeps_everything_else() -> None:
    slacks = {"ece_top1_w15": 0.012, "nll": 0.3, "slice.domain.new york, NY.accuracy": 0.04, "brier": 0.0, "slice.a: b.ü.nll": 0.5}
    text = with_slacks(FILE, slacks, "g.yaml")
    read, before = parse_gates(text, "g.yaml"), parse_gates(FILE, "g.yaml")
    assert read.settings == before.settings and {key: gate.slack for key, gate in read.gates.items()} == slacks
    for key, gate in before.gates.items():
        assert read.gates[key] == replace(gate, slack=slacks[key])
    for comment in ("# our gates", "# committed", "# calibration first", "# points", "# soft"):
        assert comment in text
    added = [line for line in text.splitlines() if line not in FILE.splitlines()]
    assert len(added) == 5 and len(text.splitlines()) == len(FILE.splitlines()) + 3, "two lines changed, three are new"
    flow = with_slacks("gates: {nll: {limit: 1}}", {"nll": 0.1, "brier": 0.2}, "g")
    assert {key: gate.slack for key, gate in parse_gates(flow, "g").gates.items()} == {"nll": 0.1, "brier": 0.2}


def test_a_new_file_says_where_it_comes_from() -> None:
    text = new_gate_file({"nll": 0.01, "slice.domain.a b.nll": 0.0}, ["From a and b.", "two\nlines"])
    assert text.startswith("# From a and b.\n# two\n# lines\n")
    assert {key: gate.slack for key, gate in parse_gates(text, "g").gates.items()} == {"nll": 0.01, "slice.domain.a b.nll": 0.0}


def test_the_worst_slice_is_allowed_what_any_slice_needs() -> None:
    rows = [{"a": (0.9, 0.5), "b": (0.7, 0.8)}, {"a": (0.6, 0.52), "b": (0.69, 0.81)}]
    tables = [
        {
            f"slice.x.{v}.{key}": MetricValue(n, 10, d, "")
            for v, pair in row.items()
            for key, n, d in zip(("accuracy", "nll"), pair, ("higher", "lower"), strict=True)
        }
        for row in rows
    ]
    worst = {f"slice.worst.{key}": [f"slice.x.{v}.{key}" for v in "ab"] for key in ("accuracy", "nll")}
    accuracy, nll = learn_all(tables, list(worst), 1.0, {}, worst)
    assert accuracy.values == [0.7, 0.6] and accuracy.slack == 0.3, "slice a fell by 0.3, the worst of both by 0.1"
    assert nll.values == [0.8, 0.81] and nll.slack == 0.02
    del tables[1]["slice.x.b.nll"]
    with pytest.raises(SveError, match="has a metric 'slice.x.b.nll'"):
        learn_all(tables, ["slice.worst.nll"], 1.0, {}, worst)
