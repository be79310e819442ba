"""The hub, with a client that keeps repositories as the hub's cache does: what is pushed opens again, and failures cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, ModelCard, constants
from transformers import AutoModelForSequenceClassification

import sve_cli
from sve_cli.errors import CheckFailed, SveError
from sve_cli.export.card import _as_text, base_name
from sve_cli.workflows import push as hub
from sve_cli.workflows.session import Silent

Make = Callable[..., Any]
COMMIT = "0" * 40


class Hub:
    """Repositories as folders of the hub's cache: `models--USER--NAME/snapshots/COMMIT`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.private: dict[str, bool] = {}

    def folder(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        self.private.setdefault(name, private)
        self.folder(name).mkdir(parents=True, exist_ok=exist_ok)
        refs = self.folder(name).parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(COMMIT)
        return f"https://huggingface.co/{name}"

    def list_repo_files(self, name: str) -> list[str]:
        return [p.relative_to(self.folder(name)).as_posix() for p in self.folder(name).rglob("*") if p.is_file()] + [
            ".gitattributes"
        ]

    def create_commit(self, name: str, operations: list[Any], commit_message: str) -> None:
        for operation in operations:
            place = self.folder(name) / operation.path_in_repo
            if isinstance(operation, CommitOperationAdd):
                place.parent.mkdir(parents=True, exist_ok=True)
                given = operation.path_or_fileobj
                place.write_bytes(given if isinstance(given, bytes) else Path(str(given)).read_bytes())
            else:
                place.unlink()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "hub", lambda: made)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return made


def test_an_adapter_comes_back_from_the_hub(make: Make, tmp_path: Path, server: Hub) -> None:
    case = make("bert")
    ((artifact, _),) = case.export(tmp_path / "out", ("adapter",))
    assert hub.push([artifact.path], "me/my-ensemble", Silent()) == ["https://huggingface.co/me/my-ensemble"]
    assert server.private == {"me/my-ensemble": True}
    loaded: Any = sve_cli.load("me/my-ensemble", base=case.source, device="cpu")
    local: Any = sve_cli.load(artifact.path, base=case.source, device="cpu")
    texts = list(case.samples.inputs["text"])
    np.testing.assert_array_equal(loaded.logits(texts), local.logits(texts))
    with pytest.raises(SveError, match=r"no folder 'me/another', and the hub gave none"):
        sve_cli.load("me/another")


def test_a_member_opens_by_the_code_of_its_card(
    make: Make, tmp_path: Path, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make("bert")
    ((artifact, certificate),) = case.export(tmp_path / "out", members=[1], dtype="bfloat16")
    hub.push([artifact.path], "me/member", Silent(), public=True)
    assert server.private == {"me/member": False}
    assert AutoModelForSequenceClassification.from_pretrained("me/member").config.id2label[0] == "negative"
    text = (server.folder("me/member") / "README.md").read_text()
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out.strip() in case.samples.classes
    card: Any = ModelCard(text).data
    assert card.library_name == "transformers" and card.pipeline_tag == "text-classification" and "calibration" in card.tags
    found = {e.metric_type: e.metric_value for e in card.eval_results}
    assert found == pytest.approx(certificate.facts["test"]["rows"]["merged"], abs=1e-6) and found.keys() >= {"nll", "accuracy"}
    assert card.eval_results[0].dataset_split == "test" and "FOLDER" not in text.partition("## Results")[0]


def test_several_get_a_repository_each_and_the_next_push_replaces(make: Make, tmp_path: Path, server: Hub) -> None:
    case = make("vit")
    folders = [a.path for a, _ in case.export(tmp_path / "out", ("merged",), [0, 1])]
    assert len(hub.push(folders, "me/x", Silent())) == 2 and server.private.keys() == {"me/x-member-0", "me/x-member-1"}
    (server.folder("me/x-member-0") / "old.txt").write_text("of an earlier export")
    hub.push(folders[:1], "me/x-member-0", Silent())
    assert set(server.list_repo_files("me/x-member-0")) == {p.name for p in folders[0].iterdir()} | {".gitattributes"}
    code = (server.folder("me/x-member-0") / "README.md").read_text()
    assert 'folder = snapshot_download("me/x-member-0")' in code and '"local-dir:" + folder' in code


def test_what_is_not_ours_or_not_certified_is_left_alone(make: Make, tmp_path: Path, server: Hub) -> None:
    ((artifact, _),) = make("bert").export(tmp_path / "out", ("adapter",))
    server.create_repo("me/other", private=True, exist_ok=True)
    (server.folder("me/other") / "model.safetensors").write_bytes(b"another's work")
    with pytest.raises(SveError, match="holds something that sve did not write"):
        hub.push([artifact.path], "me/other", Silent())
    assert [p.name for p in server.folder("me/other").iterdir()] == ["model.safetensors"]
    (artifact.path / "adapter.json").write_text("{}")
    with pytest.raises(CheckFailed, match=r"adapter\.json.*was changed after the export"):
        hub.push([artifact.path], "me/new", Silent())
    with pytest.raises(SveError, match="no readable certificate"):
        hub.push([tmp_path], "me/new", Silent())
    assert "me/new" not in server.private


def test_failures_are_one_sentence_and_the_folder_stays(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Hub
) -> None:
    ((artifact, _),) = make("bert").export(tmp_path / "out", ("adapter",))
    before = sorted(p.name for p in artifact.path.iterdir())

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nwhat follows is long")

    monkeypatch.setattr(server, "create_commit", unreachable)
    with pytest.raises(SveError, match=r"is complete, but could not be pushed to 'me/x': Name or service not known\.") as caught:
        hub.push([artifact.path], "me/x", Silent())
    assert caught.value.exit_code == 2 and f"--verify {artifact.path} --push me/x" in caught.value.hint
    assert sorted(p.name for p in artifact.path.iterdir()) == before


def test_names_are_looked_at_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    for name, message in [("x", "names no user"), ("a b/c", "is no repository of the hub"), ("a/b/c", "no repository of the hub")]:
        with pytest.raises(SveError, match=message):
            hub.require_pushable(name)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(SveError, match="not logged in.*hf auth login"):
        hub.require_pushable("me/x")


def test_the_client_is_the_hubs_own() -> None:
    """The calls above, by the names and arguments that the real client has."""
    client = huggingface_hub.HfApi
    assert isinstance(hub.hub(), client)
    for name, arguments in [("create_repo", {"private", "exist_ok"}), ("create_commit", {"operations", "commit_message"})]:
        assert arguments <= set(getattr(client, name).__annotations__)


def test_a_card_says_what_its_checkpoint_is_called_and_not_where_it_lay(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"")
    for name, called in (
        (str(tmp_path / "net"), "net"), (f"timm:{tmp_path / 'net'}", "timm:net"), ("user/net", "user/net"),
        ("timm:resnet18", "timm:resnet18"),
        (f"timm:resnet18@{tmp_path / 'w.safetensors'}", "timm:resnet18@w.safetensors"),
        ("resnet18@w.safetensors", "resnet18@w.safetensors"),
    ):  # fmt: skip
        assert base_name(name) == called


def test_a_class_name_cannot_pass_for_the_code_of_a_card() -> None:
    card = 'Classes: \n```python\nprint("FOLDER")\n```\n\n## How to load it\n\n```python\nload("FOLDER")\n```\n'
    found = hub.card_for("me/x", card)
    assert 'print("FOLDER")' in found and 'load("FOLDER")' not in found and 'snapshot_download("me/x")' in found


def test_a_class_name_is_one_line_of_text() -> None:
    assert _as_text("a\n```python\nrun()") == "a \\`\\`\\`python run()" and _as_text("New York_2 <b>") == "New York_2 \\<b\\>"
