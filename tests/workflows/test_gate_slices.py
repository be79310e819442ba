"""Slices in gates: one of them, the worst of them, and those that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CITIES = ["New York, NY", 'a "quoted" <one>', "far\\away"]
FAST = "bootstrap: 200\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CSVs of three cities of 200 samples each, and 10 of Oslo: as it was, and with the first city worse."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    labels_N = rng.integers(4, size=610)
    logits_NC = rng.normal(size=(610, 4))
    logits_NC[np.arange(610), labels_N] += 2.5
    city_N = [*(CITIES[i // 200] for i in range(600)), *["Oslo"] * 10]
    found = {}
    for name, spoilt, columns in (("old", 0, False), ("new", 0, True), ("worse", 200, True)):
        noisy_NC = logits_NC + 0.2 * np.random.default_rng(len(name)).normal(size=logits_NC.shape)
        noisy_NC[:spoilt] *= 0.1
        probs_NC = np.exp(noisy_NC) / np.exp(noisy_NC).sum(axis=1, keepdims=True)
        found[name] = folder / f"{name}.csv"
        with found[name].open("w", encoding="utf-8") as file:
            file.write("id,label,probs" + (",city\n" if columns else "\n"))
            for i in range(610):
                city = ',"' + city_N[i].replace('"', '""') + '"' if columns else ""
                file.write(f's{i},{labels_N[i]},"{" ".join(f"{p:.6f}" for p in probs_NC[i])}"{city}\n')
    return found


@pytest.fixture
def gate(sve: Any, tmp_path: Path, files: dict[str, Path]) -> Callable[..., list[dict[str, Any]]]:
    """`gate(text, new, baseline, code)`: the checks of a gate file."""

    def judged(text: str, new: str = "new", baseline: str | Path = "old", code: int = 0) -> list[dict[str, Any]]:
        (tmp_path / "g.yaml").write_text(FAST + text, encoding="utf-8")
        place = files.get(str(baseline), baseline)
        out = sve("evaluate", "--predictions", files[new], "--bootstrap", 40, "--gate", "g.yaml", "--baseline", place, "--json",
                  code=code)  # fmt: skip
        return list(json.loads(out)["gate"]["checks"]) if code != 2 else []

    return judged


def test_one_slice_is_paired_with_the_same_samples_of_the_baseline(
    gate: Callable[..., list[dict[str, Any]]], sve: Any, tmp_path: Path, files: dict[str, Path]
) -> None:
    keys = [json.dumps(f"slice.city.{city}.nll") for city in CITIES]
    text = f"gates: {{{keys[0]}: {{slack: 0.05}}, {keys[1]}: {{slack: 0.05, limit: 2}}, {keys[2]}: {{relative_slack: 0.2}}}}"
    assert {check["outcome"] for check in gate(text)} == {"pass"}
    whole = gate(text, "worse", code=3)
    assert [(check["outcome"], check["n"], check["paired"]) for check in whole] == [
        ("fail", 200, True), ("pass", 200, None), ("pass", 200, True), ("pass", 200, True),
    ]  # fmt: skip
    sve("gate", "baseline", "--predictions", files["old"], "--out", "base.json")
    packed = gate(text, "worse", tmp_path / "base.json", code=3)
    for one, other in zip(whole, packed, strict=True):
        assert one["paired"] == other["paired"]
        for field in ("value", "baseline", "worsening", "low", "high", "detectable"):
            assert other[field] == pytest.approx(one[field], abs=3e-6), field


def test_the_worst_slice(gate: Callable[..., list[dict[str, Any]]], sve: Any, files: dict[str, Path]) -> None:
    text = "gates: {slice.worst.city.nll: {slack: 0.05, limit: 1.0}, slice.worst.accuracy: {slack: 0.05}}"
    fine = gate(text)
    assert [check["outcome"] for check in fine] == ["pass"] * 3
    limit, nll, accuracy = gate(text, "worse", code=3)
    assert (limit["outcome"], nll["outcome"], accuracy["outcome"]) == ("fail", "fail", "pass")
    assert "The worst of 3 slices is city.New York, NY. " in nll["sentence"] and nll["n"] == 200 and nll["paired"]
    assert "The worst of 7 slices is " in accuracy["sentence"], "three cities and four classes; Oslo is too small"
    single = gate(f"gates: {{{json.dumps(f'slice.city.{CITIES[0]}.nll')}: {{slack: 0.05}}}}", "worse", code=3)[0]
    assert nll["worsening"] == single["worsening"] and nll["low"] < single["low"], "its interval pays for having been chosen"
    run = ("evaluate", "--predictions", files["worse"], "--bootstrap", 0)
    parts = [part for part in sve.json(*run)["slices"] if part["column"] == "city" and part["metrics"]]
    accuracies = {part["value"]: part["metrics"]["accuracy"]["value"] for part in parts}
    lowest = min(accuracies.values())
    sve(*run, "--fail-if", f"slice.worst.city.accuracy < {lowest + 1e-6:.9f}", code=3)
    sve(*run, "--fail-if", f"slice.worst.city.accuracy < {lowest - 1e-6:.9f}")
    for city in CITIES:
        quoted = ("slice.city." + city + ".accuracy").replace("\\", "\\\\").replace('"', '\\"')
        sve(*run, "--fail-if", f'"{quoted}" < {accuracies[city] + 1e-6:.9f}', code=3)
        sve(*run, "--fail-if", f'"{quoted}" < {accuracies[city] - 1e-6:.9f}')


@pytest.mark.parametrize(("policy", "code"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_a_missing_slice_is_a_policy(gate: Callable[..., list[dict[str, Any]]], sve: Any, policy: str, code: int) -> None:
    for key, why in (
        ("slice.city.Oslo.nll", "the slice has 10 samples, and at least 30"),
        ("slice.town.x.nll", "its slices are of"),
        ("slice.worst.town.nll", "no such slice"),
    ):
        text = f"gates: {{{key}: {{slack: 0, limit: 1}}}}\n"
        checks = gate(f"on_missing_slice: {policy}\n{text}", code=code)
        assert [(c["rule"], c["outcome"]) for c in checks] == [("limit", policy), ("worsening", policy)]
        assert all(why in check["sentence"] for check in checks)
        assert gate(text, code=2) == [] and why in sve.err and "on_missing_slice" in sve.err


def test_what_is_refused(gate: Callable[..., list[dict[str, Any]]], sve: Any, files: dict[str, Path]) -> None:
    gate("on_missing_slice: pass\ngates: {slice.worst.city.nl: {limit: 1}}", code=2)
    assert "Slices have no metric 'nl'" in sve.err
    for text, saying in (
        ("slice.city.Oslo.nll > 1", "has 10 samples"),
        ("slice.worst.town.nll > 1", "no such slice"),
        ("slice.city.New York, NY.nll > 1", "words and not three"),
        ('"slice.city.New York > 1', "quote"),
    ):
        sve("evaluate", "--predictions", files["new"], "--bootstrap", 0, "--fail-if", text, code=2)
        assert saying in sve.err


@pytest.mark.parametrize(("policy", "code"), [(None, 0), ("pass", 0), ("warn", 0), ("fail", 3)])
def test_the_worst_slice_says_which_are_too_small(
    gate: Callable[..., list[dict[str, Any]]], sve: Any, policy: str | None, code: int
) -> None:
    rule = f"on_missing_slice: {policy}\n" if policy else ""
    checks = gate(f"{rule}gates: {{slice.worst.city.nll: {{limit: 2}}}}", code=code)
    assert checks[0]["outcome"] == "pass" and "The worst of 3 slices" in checks[0]["sentence"]
    assert [check["outcome"] for check in checks[1:]] == ([policy] if policy else [])
    said = checks[1]["sentence"] if policy else sve.out + sve.err
    assert "city.Oslo has 10 samples, and at least 30 are needed." in said


def without(source: Path, out: Path, changed: Callable[[int], bool], how: Callable[[str], str] | None = None) -> Path:
    """A CSV without the rows of some numbers, or with them changed."""
    head, *rows = source.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [how(row) if how and changed(i) else row for i, row in enumerate(rows) if how or not changed(i)]
    out.write_text(head + "".join(kept), encoding="utf-8")
    return out


def test_samples_that_are_gone_are_missed_by_slices_too(
    gate: Callable[..., list[dict[str, Any]]], sve: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    sve("gate", "baseline", "--predictions", files["old"], "--out", "base.json")
    one = json.dumps(f"slice.city.{CITIES[1]}.nll")
    text = f"max_missing: 0.05\ngates: {{{one}: {{slack: 1}}, slice.worst.city.nll: {{slack: 9}}}}"
    lost: dict[str, tuple[Callable[[int], bool], Callable[[str], str] | None]] = {
        "rows of another slice": (lambda i: 50 <= i < 200, None), "a whole slice": (lambda i: i < 200, None),
        "labels": (lambda i: 50 <= i < 200, lambda row: ",".join([row.split(",")[0], "", row.split(",", 2)[2]])),
    }  # fmt: skip
    for name, (which, how) in lost.items():
        new = without(files["new"], tmp_path / "lost.csv", which, how)
        for baseline in (files["old"], tmp_path / "base.json"):
            (tmp_path / "g.yaml").write_text(FAST + text, encoding="utf-8")
            sve("evaluate", "--predictions", new, "--bootstrap", 0, "--gate", "g.yaml", "--baseline", baseline, code=2)
            assert "samples of the baseline (" in sve.err and "are not on the other side" in sve.err, (name, baseline)
    # A loss that is small beside the whole set is large in a slice; a baseline with columns shows it.
    new = without(files["new"], tmp_path / "lost.csv", lambda i: 200 <= i < 225)
    arguments = ("evaluate", "--predictions", new, "--bootstrap", 0, "--gate", "g.yaml", "--baseline")
    sve(*arguments, files["new"], code=2)
    assert f"25 of the 200 samples of the baseline (slice.city.{CITIES[1]}) (12.5 %)" in sve.err
    sve(*arguments, tmp_path / "base.json")
    assert "25 of the 610 samples of the baseline are not on the other side" in sve.out + sve.err


def test_a_slice_that_the_baseline_does_not_have_is_not_hidden_by_the_others(
    sve: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    old = without(files["old"], tmp_path / "old.csv", lambda i: i < 200)
    for policy, code in (("warn", 0), ("fail", 3), ("pass", 0)):
        (tmp_path / "g.yaml").write_text(f"{FAST}on_missing_baseline: {policy}\ngates: {{slice.worst.city.nll: {{slack: 9}}}}")
        out = sve("evaluate", "--predictions", files["new"], "--bootstrap", 0, "--gate", "g.yaml", "--baseline", old, "--json",
                  code=code)  # fmt: skip
        [check] = json.loads(out)["gate"]["checks"]
        assert check["outcome"] == policy and "1 of 3 slices were not compared." in check["notes"]
        first = f"One not compared of 3 slices is city.{CITIES[0]}. " if policy != "pass" else "The worst of 3 slices is city."
        assert check["sentence"].startswith(first)


def test_ids_that_repeat_do_not_move_samples_between_slices(sve: Any, tmp_path: Path) -> None:
    rows = [f'{i % 100},{int(i >= 100 or i % 2)},"0.2 0.8",{"AB"[i >= 100]}' for i in range(200)]  # A is right on every second
    (tmp_path / "p.csv").write_text("id,label,probs,half\n" + "\n".join(rows) + "\n")
    (tmp_path / "g.yaml").write_text("gates: {slice.half.A.accuracy: {limit: 0.7}}")
    out = sve("evaluate", "--predictions", tmp_path / "p.csv", "--bootstrap", 40, "--gate", "g.yaml", "--json", code=3)
    [check] = json.loads(out)["gate"]["checks"]
    assert check["value"] == 0.5 and check["n"] == 100


def test_slack_of_the_worst_slice_is_learned(sve: Any, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(FAST + "gates:\n  slice.worst.city.nll: {slack: 9}  # all\n")
    found = sve.json("gate", "calibrate", files["new"], files["worse"], "--gate", "g.yaml", "--overwrite")["learned"]
    reports = [sve.json("evaluate", "--predictions", files[name], "--bootstrap", 0) for name in ("new", "worse")]
    nll = [
        {
            part["value"]: part["metrics"]["nll"]["value"]
            for part in report["slices"]
            if part["column"] == "city" and part["metrics"]
        }
        for report in reports
    ]
    assert len(nll[0]) == 3 and found[0]["values"] == [max(values.values()) for values in nll]
    assert found[0]["largest"] == pytest.approx(max(abs(nll[1][city] - value) for city, value in nll[0].items()), abs=1e-12)
    text = (tmp_path / "g.yaml").read_text()
    assert f"slice.worst.city.nll: {{slack: {found[0]['slack']:.12g}}}  # all" in text
    sve("evaluate", "--predictions", files["worse"], "--bootstrap", 20, "--gate", "g.yaml", "--baseline", files["new"])
    sve.check_refuses(
        "gate", "calibrate", files["new"], files["worse"], "--metrics", "slice.worst.town.nll", saying="slice.worst.town.nll"
    )
