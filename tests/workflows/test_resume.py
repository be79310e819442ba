"""A run that was killed goes on to the same bits, wherever it was killed; one that has changed since is refused."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sve_cli.workflows import train as train_workflow

SETTINGS = [
    "train.epochs=2", "train.batch_size=16", "train.accumulation=2", "train.checkpoint_minutes=0", "train.precision=float32",
    "method.members=2", "method.params.member_batches=independent", "data.ood=[]", "evaluate.bootstrap=0",
]  # fmt: skip
DIGITS = ["train", "quickstart", *SETTINGS, "--limit", 64]  # 2 epochs of 4 steps
STEPS = 8


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The same run without any interruption."""
    from sve_cli import cli

    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVE_CACHE_DIR", str(shared_cache))
        assert cli.run([str(a) for a in [*DIGITS, "--out", run]]) == 0
    return run


def interrupt_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Ctrl-C right after the n-th checkpoint of the next run."""
    real = train_workflow.save_file
    count = 0

    def save(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        nonlocal count
        real(tensors, path, metadata=metadata)
        count += "checkpoints" in str(path)
        if count > saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_workflow, "save_file", save)


@pytest.mark.parametrize("saves", [0, 2, 4, 7])
def test_interrupted_and_resumed_gives_the_same_bits(
    saves: int, sve: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, saves)
        sve(*DIGITS, "--out", run, code=130)
    assert "--resume" in sve.err
    assert not (run / "COMPLETE").exists()
    sve("train", "--resume", run)
    assert f"Going on at step {saves}." in sve.err or saves == 0
    sve.same_training(run, whole)
    assert [p.name for p in (run / "checkpoints").iterdir()] == []


@pytest.mark.parametrize(("number", "code", "step"), [(signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 5)])
def test_a_real_signal_ends_the_process_and_the_run_resumes(
    number: int, code: int, step: int, sve: Any, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = sve.start(*DIGITS, "--out", run)
    seen = process.at_step(run, step, number)
    assert process.wait() == code
    said = process.err.read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert ("--resume" in said) == (number != signal.SIGKILL)
    assert seen < STEPS, "the signal came too late to prove anything"
    sve("train", "--resume", run)
    sve.same_training(run, whole)
    assert not list(run.rglob("*.tmp*"))  # what the killed process was writing


def test_killed_twice_and_resumed_without_naming_the_run(sve: Any, whole: Path, tmp_path: Path) -> None:
    first = sve.start(*DIGITS)
    while not (found := list((tmp_path / "runs").glob("*/recipe.lock.json"))):
        time.sleep(0.01)
    run = found[0].parent
    first.at_step(run, 2, signal.SIGKILL)
    assert first.wait() == -9
    second = sve.start("train", "--resume")
    second.at_step(run, 5, signal.SIGKILL)
    assert second.wait() == -9
    sve("train", "--resume")
    assert f"Run: {run.relative_to(tmp_path)}" in sve.err.replace(f"{tmp_path}/", "")
    sve.same_training(run, whole)
    sve.check_refuses("train", "--resume", run, saying="already complete")
    sve.check_refuses("train", "--resume", saying="no unfinished run")


def test_text_in_batches_of_one_length(sve: Any, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for split, n in (("train", 150), ("test", 24)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["text", "label"])
            for i in range(n):
                colour = ["red", "green", "blue"][i % 3]
                writer.writerow([" ".join(["the", "sky", "is", "very", "so"][: rng.integers(1, 6)]) + f" {colour}", colour])
    data = tmp_path / "texts"
    data.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").rename(data / f"{split}.csv")
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: {lab.root / 'bert'}}}\ndata: {{name: {data}}}\ntask: {{name: text_classification}}\n"
        "method: {name: sve, members: 2, params: {member_batches: independent}}\n"
        "train: {epochs: 2, batch_size: 32, accumulation: 2, checkpoint_minutes: 0, precision: float32}\n"
        "evaluate: {bootstrap: 0}\n"
    )
    runs = [tmp_path / "whole", tmp_path / "cut"]
    sve("train", "r.yaml", "--out", runs[0])
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        sve("train", "r.yaml", "--out", runs[1], code=130)
    sve("train", "--resume", runs[1])
    assert "Going on at step 3." in sve.err
    sve.same_training(runs[1], runs[0])


@pytest.fixture
def cut(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on local files, interrupted at step 2."""
    from sve_cli.data.digits import load_digits

    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        pq.write_table(load_digits(split), tmp_path / "data" / f"{split}.parquet")
    checkpoint = Path(str(files("sve_cli") / "assets" / "digits_vit"))
    shutil.copytree(checkpoint, tmp_path / "model")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        sve(*DIGITS, f"data.name={tmp_path / 'data'}", f"model.name={tmp_path / 'model'}", "--out", tmp_path / "run", code=130)
    return tmp_path / "run"


def test_what_changed_since_is_refused_by_its_name(sve: Any, cut: Path, tmp_path: Path) -> None:
    recipe = cut / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("head_lr: 0.005", "head_lr: 0.5"), encoding="utf-8")
    sve.check_refuses("train", "--resume", cut, saying="its recipe is not the same")
    recipe.write_text(text, encoding="utf-8")

    weights = tmp_path / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    sve.check_refuses("train", "--resume", cut, saying="its checkpoint is not the same")
    weights.write_bytes(kept)

    train = tmp_path / "data" / "train.parquet"
    pq.write_table(pq.read_table(train).slice(1), train)
    sve.check_refuses("train", "--resume", cut, saying="its data is not the same")
    sve.check_refuses("train", "--resume", cut, "train.lr=1", saying="goes on with its own settings")
    sve.check_refuses("train", "--resume", cut, "--out", "elsewhere", saying="stays in its folder")
    sve.check_refuses("evaluate", cut, saying="is not complete")
    assert f"sve train --resume {cut}" in sve.err
    sve.check_refuses("export", cut, "--to", "merged", saying="is not complete")


def test_damaged_state_of_an_unfinished_run(sve: Any, cut: Path) -> None:
    latest = cut / "checkpoints" / "latest.safetensors"
    kept = latest.read_bytes()
    latest.write_bytes(kept[:1000])
    sve.check_refuses("train", "--resume", cut, saying="Cannot read the checkpoint")
    latest.write_bytes(kept)
    with (cut / "history.jsonl").open("a", encoding="utf-8") as f:
        f.write('{"round": 0, "epo')  # killed while a line was written
    sve("train", "--resume", cut)
    assert [json.loads(line)["epoch"] for line in (cut / "history.jsonl").read_text().splitlines()] == [1, 2]


def test_killed_while_it_was_evaluated(sve: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    for place in ("evaluate_session", "seal"):  # before the first evaluation; after it, just before COMPLETE
        with monkeypatch.context() as patch:
            patch.setattr(train_workflow, place, stop)
            sve(*(["train", "--resume", run] if run.exists() else [*DIGITS, "--out", run]), code=130)
        sve.check_refuses("evaluate", run, saying="is not complete")
    (run / "checkpoints" / "latest.safetensors").write_bytes(b"x")  # killed before it was removed
    sve("train", "--resume", run)
    assert not list((run / "checkpoints").iterdir())
    assert "The training was finished before." in sve.err and "Going on at step" not in sve.err  # nothing was trained again
    sve.same_training(run, whole)
