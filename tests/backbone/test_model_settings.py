"""What of `model:` reaches the library, and what is refused because it would not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sve_cli.backbone import load_backbone
from sve_cli.errors import CheckpointError
from sve_cli.recipe import load_recipe_text
from sve_cli.recipe.spec import ModelSpec
from sve_cli.workflows.serving import _with_base
from tests.conftest import save_timm

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
IMAGES = "image_classification"


@pytest.fixture
def asked(lab: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that timm was asked for; it gives the tiny ViT for each of the hub's."""
    names: list[str] = []
    create: Callable[..., nn.Module] = timm.create_model

    def local(name: str, **settings: Any) -> nn.Module:
        names.append(name)
        return create(f"local-dir:{lab.root / 'vit'}" if name.startswith("hf") else name, **settings)

    monkeypatch.setattr(timm, "create_model", local)
    return names


def refused(task: str, **spec: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_backbone(ModelSpec(**spec), task)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["timm:hf-hub:", "hf-hub:", "timm:hf_hub:"])
def test_a_revision_of_the_hub_reaches_timm(asked: list[str], prefix: str) -> None:
    load_backbone(ModelSpec(f"{prefix}someone/net", revision="v1.0"), IMAGES)
    assert asked == [f"{prefix.removeprefix('timm:')}someone/net@v1.0"]


def test_a_revision_that_timm_cannot_take_is_refused(lab: Any, asked: list[str]) -> None:
    for name in ("timm:resnet10t", str(lab.root / "vit"), "hf-hub:someone/net@v2", "digits_vit"):
        text = refused(IMAGES, name=name, revision="v1.0")
        assert f"model.revision is 'v1.0', but '{name}' is not a hub id" in text
    assert asked == []


@pytest.mark.parametrize(("network", "task"), [("bert", "text_classification"), ("llama", "multiple_choice")])
def test_a_revision_of_a_local_folder_is_refused(lab: Any, network: str, task: str) -> None:
    name = str(lab.root / network)
    text = refused(task, name=name, revision="v1.0")
    assert f"model.revision is 'v1.0', but '{name}' is not a hub id" in text and "ORGANISATION/NAME" in text


def test_a_local_base_for_a_recipe_of_the_hub_needs_no_revision(lab: Any) -> None:
    text = "model: {name: org/net, revision: v1}\ndata: {name: x}\ntask: {name: text_classification}\nmethod: {name: sve}\n"
    recipe = load_recipe_text(text, "test")
    assert _with_base(recipe, lab.root / "bert").model == ModelSpec(str(lab.root / "bert"))
    assert _with_base(recipe, "org/copy").model == ModelSpec("org/copy", revision="v1")


def test_random_weights_for_an_architecture_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    network = timm.create_model("resnet10t")
    save_file(network.state_dict(), file)
    opened = load_backbone(ModelSpec(f"timm:resnet10t@{file}", random_init=True), IMAGES)
    assert not torch.equal(opened.network.conv1[0].weight, network.conv1[0].weight) and opened.head is None
    assert opened.digest() == load_backbone(ModelSpec("timm:resnet10t", random_init=True), IMAGES).digest()


def test_a_file_of_weights_that_is_not_there_is_named(lab: Any) -> None:
    for name in ("test_vit@nope.safetensors", "timm:test_vit@/no/where.safetensors", "test_vit@./nope.pth"):
        assert f"There is no file '{name.partition('@')[2]}'" in refused(IMAGES, name=name)


@pytest.mark.parametrize("config", ['{"architecture": null}', '{"architecture": 3}', "[]", '"bert"'])
def test_a_configuration_of_nothing_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "config.json' describes no network" in refused(IMAGES, name=str(tmp_path))


def test_an_attention_that_timm_cannot_be_told_is_refused(lab: Any) -> None:
    assert "model.attention is 'eager', but timm networks" in refused(IMAGES, name=str(lab.root / "vit"), attention="eager")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_multiple_choice_reads_the_last_token_only(lab: Any, pooling: str) -> None:
    text = refused("multiple_choice", name=str(lab.root / "llama"), pooling=pooling)
    assert f"model.pooling is '{pooling}', but multiple choice reads the last token" in text
    for same in ("native", "last"):
        assert load_backbone(lab.model("llama", pooling=same), "multiple_choice").feature_dim == 32


@pytest.mark.parametrize(
    ("architecture", "settings", "poolings"),
    [
        ("deit_tiny_patch16_224", {}, ("cls", "mean")),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, ("cls", "mean")),  # its own norm is the one behind the pooling
        ("vit_relpos_small_patch16_224", {}, ("mean",)),
        ("deit_tiny_distilled_patch16_224", {}, ("cls",)),
    ],
)
def test_a_vision_transformer_of_any_name_keeps_its_norm(
    tmp_path: Path, architecture: str, settings: dict[str, Any], poolings: tuple[str, ...]
) -> None:
    save_timm(tmp_path / "net", architecture, {**SMALL, **settings}, 32, 1)
    native = load_backbone(ModelSpec(str(tmp_path / "net")), IMAGES)
    for pooling in poolings:
        opened = load_backbone(ModelSpec(str(tmp_path / "net"), pooling=pooling), IMAGES)
        assert opened.network.state_dict().keys() == native.network.state_dict().keys()
        assert opened.network.global_pool == {"cls": "token", "mean": "avg"}[pooling]
        with torch.no_grad():
            features = opened.features(opened.network, {"image": torch.randn(2, 3, 32, 32)})
        assert features.shape == (2, 24)


def test_a_vision_transformer_of_the_hub_can_be_pooled_by_mean(asked: list[str]) -> None:
    opened = load_backbone(ModelSpec("hf-hub:someone/net", pooling="mean"), IMAGES)
    assert isinstance(opened.network.norm, nn.LayerNorm) and isinstance(opened.network.fc_norm, nn.Identity)
    assert set(asked) == {"hf-hub:someone/net"}


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_timm(tmp_path / "net", "vit_tiny_patch16_224", SMALL, 32, 1)
    config = json.loads((tmp_path / "net" / "config.json").read_text(encoding="utf-8"))
    config["model_args"]["init_values"] = 0.1
    (tmp_path / "net" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = refused(IMAGES, name=str(tmp_path / "net"))
    assert 'Missing key(s) in state_dict: "blocks.0.ls1.gamma"' in text and "\n" not in text
