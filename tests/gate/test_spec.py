"""Gate files and conditions: what is read, and what is refused with which sentence."""

from __future__ import annotations

import pytest

from sve_cli.errors import SveError
from sve_cli.gate import parse_condition, parse_gates
from sve_cli.gate.spec import GateError


def test_a_gate_file_is_read_as_written() -> None:
    file = parse_gates(
        "baseline: base.json\non_missing_baseline: warn\nconfidence: 0.9\ngates:\n"
        "  ece_top1_w15: {slack: 1e-3, limit: 0.05, detect: 0.02}\n  accuracy: {relative_slack: 0.01}\n",
        "gates.yaml",
    )
    assert (file.settings.baseline, file.settings.on_missing_baseline, file.settings.confidence) == ("base.json", "warn", 0.9)
    assert file.settings.max_missing == 0.05 and list(file.gates) == ["ece_top1_w15", "accuracy"]
    gate = file.gates["ece_top1_w15"]
    assert (gate.slack, gate.limit, gate.detect, gate.relative_slack) == (0.001, 0.05, 0.02, None)
    assert file.gates["accuracy"].compares and not parse_gates("gates: {nll: {limit: 1}}", "g").gates["nll"].compares


def test_every_fault_is_reported_at_once_with_its_line() -> None:
    text = (
        "on_missing_baseline: ignore\nbootstrap: 5\nconfidance: 0.9\ngates:\n  nll: {slak: 0.1}\n  brier: {slack: -1}\n"
        "  accuracy: {slack: 0.1, detect: 0.05}\n  nll: {slack: 0}\n"
    )
    with pytest.raises(GateError) as caught:
        parse_gates(text, "g.yaml")
    told = "\n".join(caught.value.problems)
    for part in (
        "g.yaml:1: on_missing_baseline: expected one of fail, warn, pass",
        "g.yaml:2: bootstrap: must be at least 100",
        "g.yaml:3: confidance: unknown key (Did you mean 'confidence'?)",
        "g.yaml:5: gates.nll.slak: unknown key (Did you mean 'slack'?)",
        "g.yaml:6: gates.brier.slack: must be at least 0",
        "g.yaml:7: gates.accuracy.detect: must be greater than the slack",
        "g.yaml:8: gates.nll: written twice",
    ):
        assert part in told, told
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a", "expected keys and values"), ("seed: 1", "gates: missing"), ("gates: {}", "expected metrics"),
     ("gates: {nll: 3}", "expected a section, found 3"), ("gates: {nll: {}}", "allows nothing and forbids nothing"), ("", "empty")],
)  # fmt: skip
def test_what_is_no_gate_file(text: str, part: str) -> None:
    with pytest.raises(GateError, match=part):
        parse_gates(text, "g.yaml")


def test_conditions() -> None:
    condition = parse_condition(" temperature.nll   >=  1.5e-1 ")
    assert (condition.key, condition.sign, condition.number) == ("temperature.nll", ">=", 0.15)
    assert condition.text == "temperature.nll >= 0.15" and condition.holds(0.15) and not condition.holds(0.14)
    assert parse_condition("accuracy < .9").holds(0.89) and not parse_condition("nll > 1").holds(1.0)


@pytest.mark.parametrize("text", ["nll>1", "nll > 1 2", "nll == 1", "nll > nan", "nll > inf", "nll > 1e999", "nll > f()", ""])
def test_refused_conditions(text: str) -> None:
    with pytest.raises(SveError) as caught:
        parse_condition(text)
    assert "0.03" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [(r'"slice.city.New York, NY.accuracy" < 0.5', "slice.city.New York, NY.accuracy"),
     (r' "slice.say.\"a\\b\".nll"  <  0.5', r'slice.say."a\b".nll'),
     (r'"nll" < 0.5', "nll"), (r"slice.a>b.nll < 0.5", "slice.a>b.nll")],
)  # fmt: skip
def test_a_quoted_address(text: str, key: str) -> None:
    condition = parse_condition(text)
    assert (condition.key, condition.sign, condition.number) == (key, "<", 0.5)
    assert parse_condition(condition.text) == condition, "what is shown can be typed again"


@pytest.mark.parametrize(
    "text", ['"nll < 0.5', '"nll"< 0.5', '"" < 0.5', '"a"b < 0.5', r'"a\x" < 0.5', "slice.a.New York.nll < 0.5"]
)
def test_a_quote_that_does_not_end(text: str) -> None:
    with pytest.raises(SveError, match="--fail-if"):
        parse_condition(text)
