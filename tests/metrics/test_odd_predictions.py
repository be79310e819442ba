"""What docs/metrics.md says of odd predictions, each through `sve evaluate --predictions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sve_cli.cli import app

RUNNER = CliRunner()


def evaluated(path: Path, probs: np.ndarray, labels: list[int]) -> Result:
    np.savez(path, probs=probs, labels=np.array(labels))
    return RUNNER.invoke(app, ["evaluate", "--predictions", str(path), "--bootstrap", "50", "--json"])


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def ensemble(found: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = next(row for row in found["rows"] if row["key"] == "ensemble")["metrics"]
    return metrics


def test_confidence_of_exactly_one_lies_in_the_last_bin(tmp_path: Path) -> None:
    found = report(evaluated(tmp_path / "p.npz", np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), [0, 1, 1, 0]))
    (last,) = next(row for row in found["rows"] if row["key"] == "ensemble")["reliability"]
    assert (last["count"], last["confidence"], last["accuracy"]) == (4, 1.0, 0.75)
    metrics = ensemble(found)
    assert metrics["ece_top1_w15"]["value"] == pytest.approx(0.25) == metrics["mce_top1_w15"]["value"]
    assert metrics["brier"]["value"] == pytest.approx(0.5) and metrics["entropy_mean"]["value"] == pytest.approx(0.0, abs=1e-30)
    assert metrics["nll"]["value"] == pytest.approx(-np.log(1e-38) / 4, rel=1e-6), "a probability of 0 counts as 1e-38"
    assert any("exactly 0" in warning for warning in found["warnings"])


def test_a_class_that_never_occurs(tmp_path: Path) -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]] * 30)
    found = report(evaluated(tmp_path / "p.npz", probs, [0, 1] * 30))
    metrics = ensemble(found)
    assert metrics["macro_f1"]["value"] == 1.0, "neither a label nor predicted: left out"
    assert metrics["ece_class_w15"]["value"] == pytest.approx((0.25 + 0.25 + 0.1) / 3), "its own error is its mean probability"
    row = found["per_class"][2]
    assert (row["support"], row["predicted"], row["recall"], row["precision"], row["f1"]) == (0, 0, None, None, None)
    assert any("never occurs" in warning for warning in found["warnings"])


def test_one_sample(tmp_path: Path) -> None:
    found = report(evaluated(tmp_path / "p.npz", np.array([[0.8, 0.2]]), [0]))
    metrics = ensemble(found)
    assert metrics["accuracy"]["value"] == 1.0 and metrics["accuracy"]["low"] < 0.25
    assert metrics["ece_top1_w15"]["value"] == pytest.approx(0.2) and metrics["nll"]["low"] is None
    assert any("Only 1 labelled" in warning for warning in found["warnings"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_is_refused_with_its_row(tmp_path: Path, bad: float) -> None:
    probs = np.full((5, 2), 0.5)
    probs[3, 1] = bad
    result = evaluated(tmp_path / "p.npz", probs, [0] * 5)
    assert result.exit_code != 0
    message = result.output + str(result.exception)
    assert "Row 4" in message and "1 such rows" in message and "NaN, infinite or missing" in message
