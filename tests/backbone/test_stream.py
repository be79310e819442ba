"""`sve decompose` reads from a local folder the layers, and the numbers, that training works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from sve_cli.backbone import load_backbone, stream
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
