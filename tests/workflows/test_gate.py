"""Gates through the command line: exit codes 0, 2 and 3, and the files that a CI job reads."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FAST = "confidence: 0.95\nbootstrap: 200\n"


def write(path: Path, scale: float = 1.5, seed: int = 1, n: int = 400, ids: bool = True, first: int = 0) -> Path:
    """Probabilities of a made-up network as a hand-made CSV; the same samples for every seed."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(5, size=600)
    logits_NC = rng.normal(size=(600, 5))
    logits_NC[np.arange(600), labels_N] += 2.0
    logits_NC = (logits_NC + 0.3 * np.random.default_rng(seed).normal(size=logits_NC.shape)) * scale
    probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    rows = [
        f'{f"s{i}," if ids else ""}{labels_N[i]},"{" ".join(f"{p:.7f}" for p in probs_NC[i])}"' for i in range(first, first + n)
    ]
    path.write_text(("id," if ids else "") + "label,probs\n" + "\n".join(rows) + "\n")
    return path


def gate_file(folder: Path, text: str, name: str = "gates.yaml") -> Path:
    path = folder / name
    path.write_text(FAST + text)
    return path


def test_a_csv_from_elsewhere_is_gated(sve: Any, tmp_path: Path) -> None:
    old, same, worse = write(tmp_path / "old.csv"), write(tmp_path / "same.csv", seed=2), write(tmp_path / "worse.csv", scale=6.0)
    made = sve.json("gate", "baseline", "--predictions", old, "--out", tmp_path / "base.json")
    assert made["n"] == 400 and "ece_top1_w15" in made["paired"] and made["bytes"] < 20_000
    gates = gate_file(tmp_path, "baseline: base.json\ngates: {nll: {slack: 0.05}, ece_top1_w15: {slack: 0.03, limit: 0.5}}\n")
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    summary.write_text("before\n")
    found = sve.json("evaluate", "--predictions", same, "--gate", gates, "--bootstrap", 20, "--junit", junit, "--summary", summary)
    assert found["gate"]["passed"] and [c["paired"] for c in found["gate"]["checks"]] == [True, None, True]
    root = ET.parse(junit).getroot()
    assert root.tag == "testsuites" and [suite.tag for suite in root] == ["testsuite"] and root.get("failures") == "0"
    sve("evaluate", "--predictions", worse, "--gate", gates, "--bootstrap", 20, "--junit", junit, "--summary", summary, code=3)
    assert "The gate failed. 2 of 3 checks failed: nll: worsening, ece_top1_w15: worsening." in sve.err and "FAIL" in sve.out
    suite = ET.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert all(case.get("classname") for case in cases.values()) and cases["nll: worsening"].find("failure") is not None
    assert cases["ece_top1_w15: limit"].find("failure") is None
    text = summary.read_text()
    assert text.startswith("before\n") and text.count("## Calibration gate: ") == 2 and "## Calibration gate: failed" in text
    failed = json.loads(sve("evaluate", "--predictions", worse, "--gate", gates, "--bootstrap", 20, "--json", code=3))
    assert not failed["gate"]["passed"] and failed["report"]["n"] == 400


def test_outputs_that_cannot_be_written_are_said_in_a_sentence(sve: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = ("evaluate", "--predictions", write(tmp_path / "p.csv"), "--fail-if", "nll > 99", "--bootstrap", 0)
    for option in ("--summary", "--junit"):
        for folder in ("", ".", tmp_path):
            sve.check_refuses(*arguments, option, folder, saying=f"{option} names the folder")
    sve(*arguments, "--summary", tmp_path / "file" / "x", code=2)
    assert f"The summary '{tmp_path / 'file' / 'x'}' cannot be written" in sve.err
    assert (tmp_path / "file").read_text() == "mine"


def test_kinds_of_baseline(sve: Any, tmp_path: Path) -> None:
    old, worse = write(tmp_path / "old.csv"), write(tmp_path / "worse.csv", scale=6.0)
    report = tmp_path / "report.json"
    report.write_text(json.dumps(sve.json("evaluate", "--predictions", old, "--bootstrap", 50)))
    sve.json("gate", "baseline", "--predictions", old, "--out", "base.json")
    found = {}
    for name in ("old.csv", "base.json", "report.json"):
        text = sve("evaluate", "--predictions", worse, "--bootstrap", 20, "--baseline", tmp_path / name, "--json", code=3)
        found[name] = {check["key"]: check for check in json.loads(text)["gate"]["checks"]}
        assert ("unpaired" in sve.err) == (name == "report.json")
    for key in ("accuracy", "nll", "brier", "ece_top1_w15"):
        whole, packed, bare = (found[name][key] for name in ("old.csv", "base.json", "report.json"))
        for field in ("value", "baseline", "worsening", "low", "high", "detectable"):
            assert packed[field] == pytest.approx(whole[field], abs=2e-6), (key, field)
        assert bare["worsening"] == pytest.approx(whole["worsening"], abs=1e-6) and bare["paired"] is False
    wide = {name: checks["accuracy"]["high"] - checks["accuracy"]["low"] for name, checks in found.items()}
    assert wide["base.json"] == 0.0 < 0.01 < wide["report.json"], "the same answers: a paired comparison knows, an unpaired cannot"


def test_fail_if(sve: Any, tmp_path: Path) -> None:
    here = write(tmp_path / "here.csv")
    run = ("evaluate", "--predictions", here, "--bootstrap", 0)
    sve(*run, "--fail-if", "ece_top1_w15 > 0.9", "--fail-if", "accuracy < 0.1")
    sve(*run, "--fail-if", "ece_top1_w15 > 0.9", "--fail-if", "accuracy < 0.999", code=3)
    assert "accuracy < 0.999" in sve.err
    for text, saying in (("ece > 0.1", "no metric 'ece'"), ("nll>1", "three"), ("nll = 1", "no comparison")):
        sve(*run, "--fail-if", text, code=2)
        assert saying in sve.err


def test_what_cannot_be_evaluated_is_exit_code_2(sve: Any, tmp_path: Path) -> None:
    old, here = write(tmp_path / "old.csv"), write(tmp_path / "here.csv", seed=2)
    run = ("evaluate", "--predictions", here, "--bootstrap", 20)
    for arguments, saying in (
        (("--baseline", "none.json"), "There is no baseline at"),
        (("--baseline", write(tmp_path / "part.csv", n=300)), "100 of the 400 samples of these predictions (25.0 %)"),
        (("--baseline", write(tmp_path / "far.csv", first=200)), "are not on the other side"),
        (("--baseline", write(tmp_path / "bare.csv", ids=False)), "are not on the other side"),
        (("--junit", "j.xml"), "--junit needs something to judge"),
        (("--gate", gate_file(tmp_path, "gates: {nll: {slack: 0}}", "1.yaml")), "no baseline is named"),
        (("--gate", gate_file(tmp_path, "gates: {ece: {limit: 1}}", "2.yaml"), "--baseline", old), "no metric 'ece'"),
        (("--gate", gate_file(tmp_path, "gates: {entropy_mean: {limit: 1}}", "3.yaml")), "no better side"),
        (("--gate", "none.yaml"), "Cannot read the gate file 'none.yaml' (No such file or directory)"),
        (("--fail-if", "accuracy"), "accuracy"),
    ):
        sve(*run, *arguments, code=2)
        assert saying in sve.err, (arguments, sve.err)
    assert sve.out == "", "a condition or a gate file that cannot be read is refused before any work"


@pytest.mark.parametrize(("policy", "code", "outcome"), [("fail", 3, "fail"), ("warn", 0, "warn"), ("pass", 0, "pass")])
def test_a_missing_baseline_is_a_policy(sve: Any, tmp_path: Path, policy: str, code: int, outcome: str) -> None:
    here = write(tmp_path / "here.csv")
    gates = gate_file(tmp_path, f"baseline: none.json\non_missing_baseline: {policy}\ngates: {{nll: {{slack: 0}}}}\n")
    junit = tmp_path / "j.xml"
    text = sve("evaluate", "--predictions", here, "--gate", gates, "--bootstrap", 20, "--junit", junit, "--json", code=code)
    (check,) = json.loads(text)["gate"]["checks"]
    assert check["outcome"] == outcome and "there is nothing at" in check["sentence"]
    assert (ET.parse(junit).getroot()[0][0].find("skipped") is not None) == (policy == "warn")


def test_a_small_set_says_that_it_cannot_see(sve: Any, tmp_path: Path) -> None:
    old, here = write(tmp_path / "old.csv", n=100), write(tmp_path / "here.csv", n=100, seed=2)
    found = sve.json("evaluate", "--predictions", here, "--bootstrap", 20, "--baseline", old)["gate"]
    assert found["passed"] and all(check["blind"] for check in found["checks"] if check["key"] == "ece_top1_w15")
    assert "cannot see what it guards" in sve.err


def test_a_run_against_itself_and_other_runs(sve: Any, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    sve("gate", "baseline", run, "--out", tmp_path / "base.json")
    gates = gate_file(
        tmp_path, "gates: {nll: {slack: 0}, temperature.nll: {slack: 0}, members.0.nll: {slack: 0}, macro_f1: {slack: 0}}\n"
    )
    itself = sve.json("evaluate", run, "--gate", gates, "--baseline", trained)["gate"]
    assert [check["paired"] for check in itself["checks"]] == [True] * 4
    assert all(check["worsening"] == pytest.approx(0.0, abs=1e-9) for check in itself["checks"])
    text = gates.read_text().replace("members.0.nll: {slack: 0}, ", "")
    gates.write_text(text)
    packed = sve.json("evaluate", run, "--gate", gates, "--baseline", tmp_path / "base.json")["gate"]
    assert [check["paired"] for check in packed["checks"]] == [True, False, False] and packed["passed"]
    assert "cannot be paired with this baseline" in sve.err
