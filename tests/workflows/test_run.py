"""train -> evaluate -> ood -> export on the embedded digits, through the command line."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from sve_cli.data.digits import load_digits
from sve_cli.export import merged
from sve_cli.predictions import Predictions
from sve_cli.rundir import EVALUATING, LOCK, check_seal
from sve_cli.workflows import evaluate as evaluate_workflow
from sve_cli.workflows.session import Silent
from sve_cli.workflows.train import LoopLog

TINY = [
    "quickstart", "train.epochs=1", "train.batch_size=16", "train.precision=float32", "evaluate.bootstrap=50", "method.members=2"
]  # fmt: skip


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits"))


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a checkpoint or data fails from here on."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("opened a model again")

    monkeypatch.setattr(evaluate_workflow, "open_session", refuse)


def test_a_run_holds_what_the_design_says(trained: Path) -> None:
    names = {"recipe.yaml", "recipe.lock.json", "ensemble.safetensors", "history.jsonl", "training.json", "COMPLETE"}
    assert {p.name for p in trained.iterdir()} == names | {"checkpoints", "evaluations", LOCK, EVALUATING}
    assert not list((trained / "checkpoints").iterdir())
    (evaluation,) = (trained / "evaluations").iterdir()
    assert {"report.json", "report.md", "report.html", "posthoc.json", "COMPLETE"} <= {p.name for p in evaluation.iterdir()}
    check_seal(trained)
    check_seal(evaluation)
    sealed = json.loads((evaluation / "COMPLETE").read_text())["files"]
    assert {str(p.relative_to(evaluation)) for p in evaluation.rglob("*") if p.is_file()} == {*sealed, "COMPLETE"}
    report = json.loads((evaluation / "report.json").read_text())
    assert report["n"] == 48 and [row["key"] for row in report["rows"]] == ["ensemble", "temperature", "members.0", "members.1"]
    assert any("Limited to 48 rows" in w for w in report["warnings"])
    assert [ood["name"] for ood in report["ood"]] == ["digits:ood"]
    assert "Limited to 48 rows" in (evaluation / "report.md").read_text() and "<svg" in (evaluation / "report.html").read_text()


def test_the_same_recipe_twice_is_the_same_run(sve: Any, trained: Path, tmp_path: Path) -> None:
    sve("train", *TINY, "--limit", 48, "--out", tmp_path / "again")
    sve.same_training(tmp_path / "again", trained)
    sve("train", *TINY, "--limit", 48, "--out", tmp_path / "again", "--overwrite", "seed=1")
    with pytest.raises(AssertionError):
        sve.same_training(tmp_path / "again", trained)


def test_another_evaluation_adds_and_changes_nothing(sve: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sve.digests(run)
    made = sve.json("evaluate", run, "--ood", "digits:validation", "--bins", 7)
    assert "'digits:validation' is the data this run was trained or tested on" in sve.err
    after = sve.digests(run)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in set(after) - set(before)} == {Path(made["evaluation"]).name}
    assert [ood["name"] for ood in made["report"]["ood"]] == ["digits:ood", "digits:validation"]
    assert any("'digits:validation' is the data" in w for w in made["report"]["warnings"])

    no_model(monkeypatch)
    assert sve.json("evaluate", run, "--ood", "digits:validation", "--bins", 7) == made
    assert sve.digests(run) == after  # nothing was computed again
    rebinned = sve.json("evaluate", run, "--ood", "digits:validation", "--bins", 9)  # from the stored predictions
    assert rebinned["evaluation"] != made["evaluation"]
    assert any("'digits:validation' is the data" in w for w in rebinned["report"]["warnings"])


def test_a_reused_evaluation_is_checked(sve: Any, run: Path) -> None:
    (evaluation,) = (run / "evaluations").iterdir()
    report = evaluation / "report.json"
    report.write_text(report.read_text(encoding="utf-8").replace("0.9", "0.8", 1), encoding="utf-8")
    sve.check_refuses("evaluate", run, saying="was changed")


def test_newest_complete_run_is_the_default(sve: Any, run: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(run, tmp_path / "runs" / "a-newer"))
    (newer / "recipe.yaml").touch()
    unfinished = Path(shutil.copytree(run, tmp_path / "runs" / "unfinished"))
    (unfinished / "COMPLETE").unlink()
    (unfinished / "recipe.yaml").touch()
    assert sve.json("evaluate")["run"] == str(newer)
    sve.check_refuses("evaluate", unfinished, saying="is not complete")
    assert f"sve train --resume {unfinished}" in sve.err
    sve.check_refuses("ood", unfinished, saying="is not complete")


@pytest.mark.parametrize("name", ["ensemble.safetensors", "history.jsonl", "recipe.yaml", "recipe.lock.json"])
def test_a_changed_byte_is_refused(name: str, sve: Any, run: Path) -> None:
    path = run / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    for command in (["evaluate", run], ["ood", run, "--sets", "digits:ood"], ["export", run, "--to", "merged"]):
        sve.check_refuses(*command, saying=f"'{path}' is missing or was changed")


def test_ood_sets_and_scores(sve: Any, run: Path, tmp_path: Path) -> None:
    table = load_digits("ood")
    for name, rows in (("far.a", 20), ("far.b", 10)):
        (tmp_path / name).mkdir()
        pq.write_table(table.slice(0, rows), tmp_path / name / "test.parquet")
    found = sve.json("ood", run, "--sets", "far.a,far.b", "--scores", "entropy,max_logit")
    sizes = {ood["name"]: ood["n_ood"] for ood in found["ood"]}
    assert list(sizes.values()) == [48, 20, 10]  # the recipe's own set, limited as the run is; alike names apart
    assert all(set(ood["scores"]) == {"entropy", "max_logit"} for ood in found["ood"])
    again = sve.json("evaluate", run, "--ood", "far.a")  # its own predictions are found again
    assert [ood["n_ood"] for ood in again["report"]["ood"]] == [48, 20]


def test_predictions_file_alone(sve: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (evaluation,) = (run / "evaluations").iterdir()
    stored = {r["key"]: r for r in json.loads((evaluation / "report.json").read_text())["rows"]}
    no_model(monkeypatch)
    report = sve.json("evaluate", "--predictions", evaluation / "predictions" / "test.safetensors", "--bootstrap", 50)
    rows = {r["key"]: r for r in report["rows"]}
    assert rows["members.1"]["metrics"]["nll"]["value"] == stored["members.1"]["metrics"]["nll"]["value"]
    sve.check_refuses("evaluate", "--predictions", run / "nothing.safetensors", saying="No predictions at")


def test_export_is_what_was_evaluated(sve: Any, run: Path) -> None:
    made = sve.json("export", run, "--to", "merged,averaged")
    assert [Path(m["artifact"]["path"]).name for m in made] == ["member-0", "member-1", "averaged"]
    assert all(m["certificate"]["gaps"]["max_logit_gap"] <= 1e-4 for m in made)
    assert made[0]["certificate"]["gap_to_base"] > 1e-3  # what was compared is not the untrained network
    (evaluation,) = (run / "evaluations").iterdir()
    test = Predictions.load(evaluation / "predictions" / "test")
    network = timm.create_model(f"local-dir:{run / 'exports' / 'member-1'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    images = {str(row["id"]): row["image"]["bytes"] for row in load_digits("test").to_pylist()}
    batch = torch.stack([transform(Image.open(io.BytesIO(images[i])).convert("RGB")) for i in test.ids_N[:8]])
    with torch.inference_mode():
        assert np.abs(network(batch).numpy() - test.logits_MNC[1, :8]).max() < 1e-4
    sve.check_refuses("export", run, "--to", "merged", saying="exists and is not empty")
    sve.check_refuses("export", run, "--to", "merged", "--members", "7", "--out", run / "x", saying="There is no member 7")
    sve.check_refuses("export", run, "--to", "onnxx", saying="Unknown export target")
    folder = run / "exports" / "averaged"
    assert sve.json("export", "--verify", folder)["intact"] is True
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    sve("export", "--verify", folder, "--json", code=3)
    said = json.loads(sve.out)
    assert said["intact"] is False and said["reason"].startswith(f"'model.safetensors' of '{folder}' was changed after the export.")
    sve.check_refuses("export", run, "--to", "merged", "--members", "a", saying="is not a list of member numbers")


def test_a_failed_certificate_is_exit_code_3(sve: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = merged.write_checkpoint

    def base_weights(source: Any, make: Any, artifact: Any, what: str) -> Any:
        ensemble = source.ensemble
        head = ensemble.heads.head(artifact.member, ensemble.classes)
        return real(source, lambda: ensemble.backbone.with_head(ensemble.backbone.fresh(), head), artifact, what)

    monkeypatch.setattr(merged, "write_checkpoint", base_weights)
    sve("export", run, "--to", "merged", "--members", "0", code=3)
    assert "does not compute what was evaluated" in sve.err and "untrained checkpoint" in sve.err
    assert sve.out == "" and not (run / "exports").exists()


def test_dry_run_writes_nothing(sve: Any, tmp_path: Path) -> None:
    plan = sve.json("train", *TINY, "--dry-run", "--limit", 48)
    assert plan["steps"] == 3 and plan["rows"] == {"train": 48, "validation": 48, "test": 48} and len(plan["targets"]) == 16
    assert list(tmp_path.iterdir()) == []
    assert "16 targeted layers" in sve("train", *TINY, "--dry-run", "--limit", 48)


def test_settings_that_a_method_does_not_read_are_named(sve: Any) -> None:
    sve("train", *TINY, "--dry-run", "--limit", 48, "method.name=single", "method.members=1", "method.last_blocks=1")
    assert "method.last_blocks: without effect, single chooses no layers" in sve.err
    sve("train", *TINY, "--dry-run", "--limit", 48, "method.last_blocks=1")
    assert "without effect" not in sve.err
    sve("train", *TINY, "--dry-run", "--limit", 48, "method.params.biases=shared", "method.params.bias_init=0.1")
    assert "method.params.bias_init is without effect: no member has biases of its own (biases: shared)." in sve.err


@pytest.mark.parametrize(("rounds", "start"), [(1, "epoch 2, train loss"), (4, "round 3 of 4, epoch 2, train loss")])
def test_epochs_of_several_rounds_are_told_apart(rounds: int, start: str) -> None:
    log = Silent()
    record = {"round": min(2, rounds - 1), "rounds": rounds, "epoch": 2, "train_loss": 0.5, "validation_nll": None, "seconds": 1.0}
    LoopLog(None, log, lambda n, text: None, 0).epoch(record)
    assert log.lines[0].startswith(start)


FAULTS = {
    "data.name=nothing/here": "nothing/here",
    "data.ood=[nothing/here]": "nothing/here",
    "data.ood=[digits:nothing]": "has no split 'nothing'",
    "data.ood=[texts.csv]": "asks for images, but 'texts.csv' holds text",
    "data.splits.test=nothing": "has no split 'nothing'",
    "data.classes=['0', '1', 'x']": "'x'",
    "model.name=./nothing": "There is no checkpoint at './nothing'",
    "model.name=runs": "has no config.json",
    "method.targets=re:nothing": "nothing",
    "task.name=text_classification": "text",
    "task.head=checkpoint": "head",
    "train.prefix_cache_mb=5": "no block is frozen",
}


@pytest.mark.parametrize("override", FAULTS)
def test_dry_run_and_run_find_the_same_faults_before_anything_is_written(override: str, sve: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    said = []
    for options in (["--dry-run"], []):
        sve.check_refuses("train", *TINY, override, "--limit", 48, *options, saying=FAULTS[override])
        said.append(sve.err[sve.err.index("error: ") :])
    assert said[0] == said[1]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["runs", "texts.csv"]
