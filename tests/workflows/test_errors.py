"""Exit codes, --json on every command, no network, and crashes that say that they are ours."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from sve_cli import cli
from sve_cli.recipe import recipe_names
from sve_cli.workflows import train as train_workflow
from tests.conftest import full_disk

TINY = ["quickstart", "train.epochs=1", "method.members=2", "evaluate.bootstrap=0", "data.ood=[]", "--limit", "32"]


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["train"], "No recipe is named"),
        (["train", "nothing.yaml"], "There is no recipe file 'nothing.yaml'"),
        (["train", "quickstrat"], "Did you mean 'quickstart'?"),
        (["train", "quickstart", "train.epoch=1"], "train.epoch"),
        (["train", "quickstart", "train.epochs"], "write key.path=value"),
        (["train", "quickstart", "data.name=clinc151"], "clinc151"),
        (["train", "quickstart", "--limit", "0"], "'--limit'"),
        (["train", "quickstart", "--out", "file/run"], "Cannot create 'file/run'"),
        (["train", "quickstart", "--dry-run", "--out", "file/run"], "Cannot create 'file/run'"),
        (["train", "quickstart", "--out", "/proc/nothing"], "Cannot create '/proc/nothing'"),
        (["train", "quickstart", "--out", "full"], "'full' exists and is not empty"),
        (["train", "quickstart", "--dry-run", "--out", "full"], "'full' exists and is not empty"),
        (["train", "quickstart", "--out", "file", "--overwrite"], "'file' is not a run, so it is not overwritten"),
        (["train", "quickstart", "--out", "full", "--overwrite"], "'full' is not a run, so it is not overwritten"),
        (["train", "--resume", "full"], "There is no run at 'full'"),
        (["train", "--resume"], "There is no unfinished run"),
        (["evaluate"], "There is no complete run"),
        (["evaluate", "full"], "There is no run at 'full'"),
        (["evaluate", "full", "--limit", "3"], "--limit belongs to --model"),
        (["evaluate", "full", "--set", "seed=1"], "--set belongs to --model"),
        (["evaluate", "full", "--model", "digits_vit", "--data", "digits"], "different things to evaluate"),
        (["evaluate", "--model", "digits_vit"], "--model and --data go together"),
        (
            ["evaluate", "--model", "digits_vit", "--data", "digits", "--set", "data.classes=['0', '1']"],
            "cannot be scored as it is",
        ),
        (["evaluate", "--aggregate", "votes"], "not 'votes'"),
        (["evaluate", "--predictions", "nothing"], "No predictions at"),
        (["ood", "full", "--sets", "digits:ood"], "There is no run at 'full'"),
        (["export", "full", "--to", "merged"], "There is no run at 'full'"),
        (["export", "--to", "merged"], "There is no complete run"),
        (["export", "full"], "No export target is named"),
        (["decompose", "./nothing"], "There is no checkpoint at './nothing'"),
        (["decompose", "digits_vit", "seed=1"], "a bare checkpoint has none"),
        (["decompose", "quickstart", "--targets", "re:nothing"], "nothing"),
        (["recipes", "show", "nothing"], "no shipped recipe"),
    ],
)
def test_what_the_user_can_mend_is_exit_code_2(arguments: list[str], saying: str, sve: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    sve.check_refuses(*arguments, saying=saying)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "precious"]


def test_sets_of_another_kind_and_scores_of_no_kind(sve: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    before = sve.digests(trained)
    sve.check_refuses("evaluate", trained, "--ood", "texts.csv", saying="asks for images, but 'texts.csv' holds text")
    sve.check_refuses("ood", trained, "--sets", "nothing/here", saying="nothing/here")
    sve.check_refuses("ood", trained, "--sets", "digits:ood", "--scores", "entrop", saying="Did you mean 'entropy'?")
    assert sve.digests(trained) == before


def planted(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def test_a_crash_is_exit_code_1_and_ours(sve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_workflow, "train", planted(ZeroDivisionError("planted")))
    sve("train", *TINY, code=1)
    assert "This is a bug: ZeroDivisionError: planted" in sve.err and "--debug" in sve.err and sve.out == ""
    assert cli.run(["--debug", "train", *TINY]) == 1
    said = sve.capsys.readouterr().err
    assert "Traceback" in said and "in fail" in said


@pytest.mark.parametrize(
    ("error", "saying"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "'runs/x': No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "Permission denied"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory"),
    ],
)
def test_a_full_disk_or_memory_is_no_bug(error: Exception, saying: str, sve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_workflow, "train", planted(error))
    sve.check_refuses("train", *TINY, saying=saying)
    assert "This is a bug" not in sve.err


def test_a_disk_that_fills_while_training(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train_workflow.save_file

    def full(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        with full_disk():
            real(tensors, path, metadata=metadata)

    monkeypatch.setattr(train_workflow, "save_file", full)
    sve.check_refuses("train", *TINY, "--out", tmp_path / "run", saying="latest.safetensors'")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_disk_that_fills_while_predictions_are_written(
    sve: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", full)
        sve.check_refuses("evaluate", run, "--vector", saying="validation.safetensors': No space left on device")
    assert "This is a bug" not in sve.err
    assert [p.name for p in run.glob("evaluations/*/predictions") if not any(p.iterdir())] == ["predictions"], "nothing is left"
    assert sve.json("evaluate", run, "--vector")["report"]


def test_json_is_one_document_on_every_command(sve: Any, trained: Path, tmp_path: Path) -> None:
    """`json()` reads all of stdout: a second document or a table beside it is an error."""
    report = sve.json("train", *TINY, "--out", tmp_path / "run")["report"]
    assert report["schema"] == "sve-report/1"
    assert "Report:" in sve.err and "epoch 1" in sve.err  # talk is on stderr
    plain = sve("evaluate", tmp_path / "run")
    assert "Ensemble of 2" in plain and "Run:" not in plain
    assert sve.json("evaluate", tmp_path / "run")["report"] == report
    assert sve.json("ood", trained)["ood"][0]["name"] == "digits:ood"
    layers = sve.json("decompose", "quickstart", "--plan")
    assert len(layers) == 16 and set(layers[0]) == {"layer", "shape", "rank"}
    assert layers[0]["layer"] in sve("decompose", "quickstart", "--plan")
    found = sve.json("decompose", "digits_vit", "--task", "image_classification", "--last-blocks", 1)
    assert len(found) == 4 and all(layer["stored"] for layer in found)  # the runs above have put them there
    assert [r["name"] for r in sve.json("recipes", "list")] == recipe_names()
    assert "digits_vit" in sve.json("recipes", "show", "quickstart")["text"]
    assert sve.json("recipes", "copy", "quickstart") == {"name": "quickstart", "file": "quickstart.yaml"}
    assert sve.json("recipes", "schema")["title"] == "sve recipe"


def test_local_files_touch_no_network(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sve("train", *TINY, "--out", tmp_path / "run")
    sve("evaluate", tmp_path / "run", "--ood", "digits:ood")
    sve("decompose", "quickstart")
    assert json.loads((tmp_path / "run" / "recipe.lock.json").read_text())["limit"] == 32
    with pytest.raises(AssertionError, match="the network was asked"):
        socket.create_connection(("localhost", 9))  # what would have happened
