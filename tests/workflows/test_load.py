"""`sve_cli.load` on a run: the documented example runs, and answers as `sve predict` does."""

from __future__ import annotations

import contextlib
import io
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sve_cli
from sve_cli.commands.export import parse_members, parse_size
from sve_cli.data.digits import load_digits
from sve_cli.errors import SveError
from sve_cli.predictions import Predictions
from sve_cli.workflows.choose_members import best_members

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rows = load_digits("test").to_pylist()[:3]
    paths = [tmp_path / f"{i}.png" for i in range(len(rows))]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(row["image"]["bytes"])
    return paths


def test_the_example_of_the_docs_answers_as_sve_predict(sve: Any, trained: Path, images: list[Path], tmp_path: Path) -> None:
    code = DEPLOY.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) <= 10
    shown, script = io.StringIO(), tmp_path / "example.py"
    script.write_text(code.replace('"RUN"', repr(str(trained))), encoding="utf-8")
    with contextlib.redirect_stdout(shown):
        answer: Any = runpy.run_path(str(script), {"INPUTS": images})["answer"]
    for i, path in enumerate(images):
        (row,) = sve.json("predict", trained, path)["rows"]
        assert row["label"] == answer.labels[i] and row["decision"] == answer.decisions[i]
        assert row["epistemic"] == pytest.approx(answer.epistemic[i], abs=1e-5)
        assert row["aleatoric"] == pytest.approx(answer.aleatoric[i], abs=1e-5)
        np.testing.assert_allclose(list(row["probabilities"].values()), answer.probabilities[i], atol=1e-5)
        assert f"{answer.labels[i]} {answer.probabilities[i].max():.3f}" in shown.getvalue()


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in [("notes", "notes.txt"), ("checkpoint", "config.json"), ("parent/run", "recipe.yaml")]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "empty").mkdir()
    for place, message in [
        ("nowhere", rf"no folder 'nowhere'. Paths start at the current folder, {tmp_path}"),
        ("notes/notes.txt", r"'notes/notes.txt' is a file. Name the folder that holds it: notes"),
        ("notes", r"neither a run \(recipe.yaml\) nor an adapter \(adapter.json\)"),
        ("empty", r"'empty' is empty. Name a run's folder, or what `sve export` wrote"),
        ("checkpoint", r"is a checkpoint, not an ensemble. Open it with its own library"),
        ("parent", r"holds folders that can be loaded, but is none. Name one: parent/run"),
    ]:
        with pytest.raises(SveError, match=message):
            sve_cli.load(place)


def test_a_run_that_is_not_finished_is_refused(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "COMPLETE").unlink()
    with pytest.raises(SveError, match=f"'{run}' is not complete. Finish it with: sve train --resume {run}"):
        sve_cli.load(run)


def test_members_are_chosen_one_after_another() -> None:
    """Member 1 is the best alone; member 2 errs elsewhere, so it helps it more than member 0, which is better alone."""
    strong, weak = 3.0, -1.0
    margins_MN = np.array([[strong, weak, 2.0, weak], [strong, weak, strong, weak], [weak, 2.0, weak, 2.0]], dtype=np.float32)
    logits_MNC = np.stack([margins_MN, np.zeros_like(margins_MN)], axis=-1)
    names = [str(i) for i in range(200)]
    doubled = Predictions(np.tile(logits_MNC, (1, 50, 1)), np.zeros(200, dtype=np.int64), names, ["a", "b"])
    chosen, sentence = best_members(doubled, 2, seed=0)
    assert set(chosen) == {1, 2} and "Members" in sentence and "100 labelled validation samples" in sentence
    assert best_members(doubled, 3, seed=0)[0][:2] == chosen


def test_options() -> None:
    assert parse_members(None) == (None, None) and parse_members("0,2") == ([0, 2], None) and parse_members("best:4") == (None, 4)
    assert [parse_size(t) for t in (None, "100MB", "1.5gb", "2000")] == [None, 100_000_000, 1_500_000_000, 2000]
    for wrong in ("best:x", "a"):
        with pytest.raises(SveError, match="not a list of member numbers"):
            parse_members(wrong)
    for wrong in ("0", "big", "-1MB"):
        with pytest.raises(SveError, match="is not a size"):
            parse_size(wrong)
