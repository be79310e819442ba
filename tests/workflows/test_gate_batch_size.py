"""Re-evaluation at another batch size: predictions are made again, and the gate passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sve_cli.predictions import Predictions
from sve_cli.workflows import session

GATES = (
    "baseline: base.json\ngates:\n  accuracy: {slack: 0}\n  nll: {slack: 0}\n  brier: {slack: 0}\n  ece_top1_w15: {slack: 0}\n"
    "  temperature.nll: {slack: 0}\n"
)


def test_another_batch_size_predicts_again_and_passes(
    sve: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    used: list[int] = []
    predict = session.predict_logits

    def watched(*arguments: Any, **named: Any) -> Any:
        used.append(arguments[2])
        return predict(*arguments, **named)

    monkeypatch.setattr(session, "predict_logits", watched)
    sve.json("gate", "baseline", run, "--out", tmp_path / "base.json")
    assert used == [], "the run's own evaluation is there"
    (tmp_path / "gates.yaml").write_text(GATES)
    made = sve.json("evaluate", run, "--batch-size", 7, "--gate", "gates.yaml")
    assert used and set(used) == {7}, "validation, test and the OOD set were predicted again"
    assert made["gate"]["passed"] and made["report"]["provenance"]["batch_size"] == 7
    first = next(p for p in (run / "evaluations").iterdir() if str(p) != made["evaluation"])
    old, new = (Predictions.load(folder / "predictions" / "test") for folder in (first, Path(made["evaluation"])))
    assert old.ids_N == new.ids_N and np.abs(old.logits_MNC - new.logits_MNC).max() < 1e-3

    used.clear()
    itself = sve.json("evaluate", run, "--batch-size", 7, "--baseline", run)["gate"]
    assert used == [] and itself["passed"] and {check["paired"] for check in itself["checks"]} == {True}
    sve("evaluate", run, "--batch-size", 7, "--fail-if", "accuracy <= 1", code=3)
    again = sve.json("evaluate", run, "--bins", 10)
    assert again["report"]["provenance"]["batch_size"] == 128 and used == [], "the ones of the recipe's batch size are still found"


def test_a_run_as_its_own_baseline_is_another_evaluation(sve: Any, trained: Path, tmp_path: Path) -> None:
    """Damage what the first evaluation says: the second, judged against its own run, must notice."""
    from sve_cli.workflows.gate_sides import open_reference

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (first,) = (run / "evaluations").iterdir()
    second = Path(sve.json("evaluate", run, "--bins", 10)["evaluation"])
    for judged, expected in ((second, 15), (first, 10)):
        reference = open_reference(run, judged=judged)
        assert reference is not None and f"ece_top1_w{expected}" in reference.values


def test_a_batch_size_that_cannot_be_used(sve: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('label,probs\n0,"0.9 0.1"\n')
    sve("evaluate", "--predictions", "p.csv", "--batch-size", 8, code=2)
    assert "--batch-size is for predicting" in sve.err and sve.out == ""
