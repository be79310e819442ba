"""`sve decompose` reads from a local folder the layers, and the numbers, that training works on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sve_cli.backbone import load_backbone, stream
from sve_cli.backbone.files import tensor_files
from sve_cli.backbone.stream import stream_targets
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import MethodSpec, ModelSpec
from tests.conftest import wordpiece


def same(spec: ModelSpec, task: str, **method: Any) -> bool:
    """Whether the streamed layers are those of the opened checkpoint, and hold its numbers."""
    wanted = MethodSpec(name="sve", **method)
    views = load_backbone(spec, task).targets(wanted)
    layers = stream_targets(spec, wanted, task)
    assert [(name, shape) for name, shape, _ in layers] == [(v.name, tuple(v.weight_OI.shape)) for v in views]
    return all(torch.equal(load(), v.weight_OI) for (_, _, load), v in zip(layers, views, strict=True))


@pytest.mark.parametrize("network", ["vit", "resnet", "bert", "bert_mean", "llama", "gpt2"])
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_the_layers_are_those_that_train(lab: Any, network: str, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(lab.model(network), lab.task_name(network), targets=targets)
    monkeypatch.setattr("sve_cli.backbone.load_backbone", lambda *given: pytest.fail("the network was opened as a whole"))
    stream_targets(lab.model(network), MethodSpec(name="sve", targets=targets), lab.task_name(network))


def test_names_are_those_of_the_opened_network(lab: Any) -> None:
    assert same(lab.model("bert"), "text_classification", targets=["bert.encoder.layer.1.output.dense"])
    assert same(lab.model("bert"), "text_classification", exclude=["bert.pooler.dense", "re:^bert.encoder.layer.0"])


@pytest.mark.parametrize("whole", [True, False])
def test_layers_of_the_classifier_count_even_where_the_checkpoint_lacks_them(lab: Any, tmp_path: Path, whole: bool) -> None:
    kind = transformers.RobertaForSequenceClassification if whole else transformers.RobertaModel
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    kind(transformers.RobertaConfig(vocab_size=99, **sizes)).save_pretrained(tmp_path)
    wordpiece().save_pretrained(tmp_path)
    assert same(ModelSpec(str(tmp_path)), "text_classification", targets=["classifier.dense", "query"])


def test_what_the_library_does_not_know_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "foo"}', encoding="utf-8")
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="transformers cannot open .*model type `foo`"):
        stream_targets(ModelSpec(str(tmp_path)), MethodSpec(name="sve"), "text_classification")


def test_a_network_that_cannot_be_built_without_weights_is_opened(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(stream, "_text_skeleton", fails)
    assert same(lab.model("bert"), "text_classification")


@pytest.mark.parametrize("trusted", [True, False])
def test_the_recipe_says_whether_a_repositorys_code_may_run(lab: Any, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    asked: list[Any] = []
    plain = transformers.AutoConfig.from_pretrained

    def listen(name: Any, **given: Any) -> Any:
        asked.append(given.get("trust_remote_code"))
        return plain(name, **given)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", listen)
    stream_targets(lab.model("bert", trust_remote_code=trusted), MethodSpec(name="sve"), "text_classification")
    assert asked == [trusted]


def sharded(lab: Any, folder: Path) -> Path:
    """The tiny BERT in several files."""
    transformers.BertForSequenceClassification.from_pretrained(lab.root / "bert").save_pretrained(folder, max_shard_size="40KB")
    for file in (lab.root / "bert").glob("tokenizer*"):
        shutil.copy(file, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def remove(index: Path, shard: Path) -> None:
    shard.unlink()


def cut(index: Path, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:1000])


def cut_index(index: Path, shard: Path) -> None:
    index.write_text(index.read_text(encoding="utf-8")[:50], encoding="utf-8")


def empty_index(index: Path, shard: Path) -> None:
    index.write_text("{}", encoding="utf-8")


def bare_index(index: Path, shard: Path) -> None:
    index.write_text('{"weight_map": {"a": "b"}}', encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"model-00002.*there is no such file, but model\.safetensors\.index\.json names it"), (cut, "model-00002"),
        (cut_index, r"index\.json"), (empty_index, r"index\.json.*it is no index"), (bare_index, r"index\.json.*it is no index"),
    ],
)  # fmt: skip
def test_a_damaged_sharded_checkpoint_is_a_sentence(lab: Any, tmp_path: Path, damage: Any, message: str) -> None:
    folder = sharded(lab, tmp_path / "net")
    spec, method = ModelSpec(str(folder)), MethodSpec(name="sve")
    assert same(spec, "text_classification")
    damage(folder / "model.safetensors.index.json", sorted(folder.glob("*.safetensors"))[1])
    with pytest.raises(CheckpointError, match=f"Cannot read '.*{message}.*Fetch the checkpoint again"):
        for _, _, load in stream_targets(spec, method, "text_classification"):
            load()
    if damage is not cut:  # which the library reports itself
        for pooling in ("auto", "mean"):
            with pytest.raises(CheckpointError, match=f"Cannot read '.*{message}"):
                load_backbone(ModelSpec(str(folder), pooling=pooling), "text_classification")


@pytest.mark.parametrize("network", ["bert", "vit"])
def test_files_beside_the_weights_are_not_read(lab: Any, tmp_path: Path, network: str) -> None:
    folder = Path(shutil.copytree(lab.root / network, tmp_path / "net"))
    other = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "zz_stray.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "zz_stray.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert same(ModelSpec(str(folder)), lab.task_name(network))
    library = "timm" if network == "vit" else "transformers"
    assert set(tensor_files(folder, library).values()) == {folder / "model.safetensors"}


def test_timm_reads_other_names_too(lab: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lab.root / "vit", tmp_path / "net"))
    other = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "a.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    assert same(ModelSpec(str(folder)), "image_classification")
    assert set(tensor_files(folder, "timm").values()) == {folder / "a.safetensors"}
    (folder / "b.safetensors").rename(folder / "open_clip_model.safetensors")
    assert same(ModelSpec(str(folder)), "image_classification")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert tensor_files(folder, "timm") == {}  # timm opens that one
