"""A network that was fine-tuned here, exported, and taken up again keeps its head and its accuracy at step 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sve_cli import cli

CLASSES = "data.classes=['0', '1', '2', '3', '4', '5', '6', '7']"
COMMON = ["evaluate.bootstrap=0", "data.ood=[]", "train.precision=float32"]


def sve(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run a command that must end well; its JSON document."""
    capsys.readouterr()
    code = cli.run([*(str(a) for a in arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_fine_tuned_exported_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    few = ["--limit", 96]
    settings = [*COMMON, "method.name=single", "train.epochs=1", "train.batch_size=16"]
    single = sve(capsys, "train", "quickstart", *settings, *few, "--out", "single")["report"]
    metrics = single["rows"][0]["metrics"]
    assert 0.5 < metrics["accuracy"]["value"] < 1.0  # something to keep, and something to lose
    sve(capsys, "export", "single", "--to", "merged")
    folder = "single/exports/member-0"

    taken = [
        *COMMON,
        f"model.name={folder}",
        "task.head=checkpoint",
        "train.epochs=0",
        "method.params.sigma_init=0.0",
        "method.params.bias_init=0.0",
    ]
    again = sve(capsys, "train", "quickstart", *taken, *few, "--out", "again")["report"]
    rows = {row["key"]: row["metrics"] for row in again["rows"]}
    assert {"ensemble", "before", "members.0", "members.3"} <= set(rows)
    for key in ("before", "ensemble", "members.3"):
        assert rows[key]["accuracy"]["value"] == metrics["accuracy"]["value"], key
        assert rows[key]["nll"]["value"] == pytest.approx(metrics["nll"]["value"], abs=1e-5), key
    assert "before training it was" in " ".join(again["headline"])

    as_it_is = ["evaluate", "--model", folder, "--data", "digits", "--set", CLASSES, "--limit", 96, "--bootstrap", 0]
    scored = sve(capsys, *as_it_is)
    assert scored["rows"][0]["metrics"]["accuracy"]["value"] == metrics["accuracy"]["value"]
    assert scored["rows"][0]["metrics"]["nll"]["value"] == pytest.approx(metrics["nll"]["value"], abs=1e-6)
    assert scored["classes"] == single["classes"] and any("Limited to 96" in w for w in scored["warnings"])

    fresh = sve(capsys, "train", "quickstart", *taken, "task.head=new", *few, "--out", "fresh")["report"]
    fresh_rows = {row["key"]: row["metrics"] for row in fresh["rows"]}
    assert fresh_rows["before"] == rows["before"]  # what the checkpoint could do is told even where a new head was asked for
    assert fresh_rows["ensemble"]["nll"]["value"] > metrics["nll"]["value"] + 0.1
