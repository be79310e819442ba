"""`sve gate calibrate` through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sve_cli.gate import load_gates
from sve_cli.recipe import load_recipe
from sve_cli.workflows import gate_calibrate


def write(path: Path, seed: int, n: int = 200, flip: bool = False) -> Path:
    """Probabilities of one training of a made-up network: the same samples, noise by seed."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(5, size=n)
    logits_NC = rng.normal(size=(n, 5))
    logits_NC[np.arange(n), labels_N] += 2.0
    logits_NC = logits_NC + 0.5 * np.random.default_rng(seed).normal(size=logits_NC.shape)
    probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    rows = [f's{i},{(labels_N[i] + flip) % 5},"{" ".join(f"{p:.7f}" for p in probs_NC[i])}"' for i in range(n)]
    path.write_text("id,label,probs\n" + "\n".join(rows) + "\n")
    return path


def test_slack_from_three_trainings(sve: Any, tmp_path: Path) -> None:
    runs = [write(tmp_path / f"{seed}.csv", seed) for seed in (1, 2, 3)]
    found = sve.json("gate", "calibrate", *runs)
    assert found["few"] and "3 pairwise worsenings among 3 evaluations" in sve.err and "That is few" in sve.err
    values = {one["key"]: one["values"] for one in found["learned"]}
    assert list(values) == ["accuracy", "nll", "brier", "ece_top1_w15"] and found["evaluations"] == ["1.csv", "2.csv", "3.csv"]
    for path, accuracy in zip(runs, values["accuracy"], strict=True):
        report = sve.json("evaluate", "--predictions", path, "--bootstrap", 0)
        assert report["rows"][0]["metrics"]["accuracy"]["value"] == accuracy
    read = load_gates(tmp_path / "gates.yaml")
    for one in found["learned"]:
        largest = max(one["values"]) - min(one["values"])
        assert one["largest"] == largest and largest <= read.gates[one["key"]].slack <= 1.1 * largest + 1e-9
        assert one["pairs"] == 3
    for run in runs[1:]:
        sve("evaluate", "--predictions", run, "--gate", "gates.yaml", "--baseline", runs[0], "--bootstrap", 20)


def test_a_gate_file_is_updated_and_never_overwritten_unasked(sve: Any, tmp_path: Path) -> None:
    runs = [write(tmp_path / f"{seed}.csv", seed) for seed in (1, 2)]
    text = "# mine\nbaseline: base.json\nbootstrap: 300\ngates:\n  nll: {slack: 0.5, limit: 3}  # why\n  accuracy: {limit: 0.2}\n"
    (tmp_path / "gates.yaml").write_text(text)
    sve.check_refuses("gate", "calibrate", *runs, saying="'gates.yaml' exists already")
    sve.check_refuses("gate", "calibrate", *runs, "--gate", "gates.yaml", saying="'gates.yaml' exists already")
    assert (tmp_path / "gates.yaml").read_text() == text
    sve("gate", "calibrate", *runs, "--gate", "gates.yaml", "--out", "new.yaml")
    assert "Slack before" in sve.out and "0.5000" in sve.out
    new = (tmp_path / "new.yaml").read_text()
    read = load_gates(tmp_path / "new.yaml")
    assert new.replace(f"slack: {read.gates['nll'].slack:.12g}", "slack: 0.5") == text and read.gates["nll"].slack < 0.5
    sve("gate", "calibrate", *runs, "--gate", "gates.yaml", "--metrics", "accuracy,nll", "--overwrite")
    both = load_gates(tmp_path / "gates.yaml").gates
    assert both["accuracy"].slack is not None and both["accuracy"].limit == 0.2 and both["nll"].limit == 3
    (tmp_path / "gates.yaml").write_text(text)
    sve("gate", "calibrate", *runs, "--overwrite")  # where there is one, it is the gate file to put the slack into
    assert (tmp_path / "gates.yaml").read_text() == new


def test_runs_that_differ_in_more_than_their_seeds_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {
        "run": [],
        "seeded": ["seed=1", "evaluate.batch_size=8", "train.precision=float32"],
        "heads": ["method.name=heads_only"],
    }
    recipes = {tmp_path / name: load_recipe("quickstart", keys).recipe for name, keys in overrides.items()}
    for path in recipes:
        path.mkdir()
    monkeypatch.setattr(gate_calibrate, "RunDir", SimpleNamespace(open=lambda path: path))
    monkeypatch.setattr(gate_calibrate, "run_recipe", recipes.__getitem__)
    run, seeded, heads = recipes
    assert gate_calibrate._unlike([run, seeded, tmp_path / "predictions.csv"]) == []
    [sentence] = gate_calibrate._unlike([run, seeded, heads])
    assert (
        sentence.startswith("'heads' was trained with another method.name")
        and "than 'run': the slack allows for that too" in sentence
    )


def test_what_cannot_be_learned_from(sve: Any, tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.csv", 1), write(tmp_path / "2.csv", 2)
    for arguments, saying in (
        ((one,), "nothing to differ from"),
        ((one, write(tmp_path / "short.csv", 2, n=190)), "evaluations of other samples (10 are on one side only)"),
        ((one, write(tmp_path / "flipped.csv", 2, flip=True)), "The label of sample"),
        ((one, two, "--metrics", "ece"), "has a metric 'ece'"),
        ((one, two, "--metrics", "entropy_mean"), "no better side"),
        ((one, two, "--quantile", "0"), "The quantile"),
        ((one, two, "--batch-sizes", "8"), "is no run"),
        ((one, two, "--batch-sizes", "8,x"), "'x' is no batch size"),
        ((one, "none.csv"), "no predictions file at 'none.csv'"),
        ((one, two, "--gate", "none.yaml"), "Cannot read the gate file"),
    ):
        sve.check_refuses("gate", "calibrate", *arguments, saying=saying)
    assert not (tmp_path / "gates.yaml").exists()
    found = sve.json("gate", "calibrate", one, one)
    assert "gives the same numbers as" in found["warnings"][0] and {x["slack"] for x in found["learned"]} == {0.0}


def test_a_run_at_other_batch_sizes(sve: Any, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    found = sve.json("gate", "calibrate", run, "--batch-sizes", "5,128")
    assert found["evaluations"] == ["run (batch size 128)", "run (batch size 5)"], "the recipe's own size counts once"
    assert all(one["largest"] < 1e-3 for one in found["learned"])
    assert not found["few"] and found["warnings"] == [] and "warning" not in sve.err, "nothing to warn of: only arithmetic differs"
    assert all("differ in batch size alone" in text for text in (found["sentence"], Path("gates.yaml").read_text()))
    sizes = [json.loads(p.read_text())["provenance"]["batch_size"] for p in (run / "evaluations").glob("*/report.json")]
    assert sorted(sizes) == [5, 128]
    sve("evaluate", run, "--batch-size", 5, "--gate", "gates.yaml", "--baseline", run)
    sve.check_refuses("gate", "calibrate", run, "--out", "other.yaml", saying="nothing to differ from")
