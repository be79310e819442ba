"""Networks without repeated blocks (VGG, DenseNet, Inception), and those without any layer that can be a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sve_cli.backbone import has_attention, select_targets
from sve_cli.backbone.linears import view_of
from sve_cli.ensemble import MemberLinear
from sve_cli.errors import SveError
from sve_cli.recipe import load_recipe_text
from sve_cli.recipe.spec import MethodSpec
from sve_cli.workflows.session import Silent, open_session
from tests.conftest import Lab, images, save_timm

RECIPE = """
model: {{name: {folder}}}
data: {{name: digits}}
task: {{name: image_classification}}
method: {{name: heads_only, members: 2}}
"""


@pytest.fixture(scope="module")
def densenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks") / "densenet"
    save_timm(folder, "densenet121", {"growth_rate": 4, "block_config": [2, 2]}, 32, 8)
    return folder


@pytest.mark.parametrize("architecture", ["densenet121", "vgg11", "inception_v3", "dla34", "dpn68", "nasnetalarge"])
def test_auto_is_every_matrix_where_there_are_no_blocks(architecture: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(architecture, pretrained=False)
    spec = MethodSpec(name="sve")
    matrices = [n for n, m in network.named_modules() if view_of(n, m)]
    assert [v.name for v in select_targets(network, spec)] == matrices
    assert not has_attention(network, spec)
    with pytest.raises(SveError, match="no repeated blocks"):
        select_targets(network, MethodSpec(name="sve", last_blocks=1))


def test_attention_outside_of_blocks_is_known_by_its_whole_path() -> None:
    attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "output")})
    network = nn.ModuleDict({"attention": attention, "key": nn.Linear(4, 4), "fc": nn.Linear(4, 4)})
    found = [v.name for v in select_targets(network, MethodSpec(name="sve", targets="attention"))]
    assert found == ["attention.query", "attention.output", "key"]
    assert [v.name for v in select_targets(network, MethodSpec(name="sve", targets="mlp"))] == ["fc"]


@pytest.mark.parametrize("method", ["sve", "lora_ensemble", "batch_ensemble", "heads_only", "single"])
def test_any_method_trains_such_a_network(lab: Lab, densenet: Path, method: str) -> None:
    class Other(Lab):
        def __init__(self) -> None:
            self.root, self.store = densenet.parent, lab.store

        def task_name(self, network: str) -> str:
            return "image_classification"

        def samples(self, network: str, n: int, seed: int) -> Any:
            return images(n, seed)

    made = Other().build("densenet", method, members=2)
    swapped = {m.view.name for m in made.ensemble.network.modules() if isinstance(m, MemberLinear)}
    assert "classifier" not in swapped
    assert ("features.denseblock1.denselayer1.conv1" in swapped) == (method not in ("heads_only", "single"))
    made.fit()
    np.testing.assert_allclose(made.training_logits().numpy(), made.logits(), atol=2e-4)


def test_a_network_without_targets_can_be_opened(densenet: Path, tmp_path: Path) -> None:
    """All its convolutions are weight-standardised; heads of its own are no less possible."""
    folder = tmp_path / "bit"
    save_timm(folder, "resnetv2_50x1_bit", {"channels": [128] * 4, "stem_chs": 32}, 32, 9)
    for path in (folder, densenet):
        recipe = load_recipe_text(RECIPE.format(folder=path), "recipe")
        session = open_session(recipe, Silent(), limit=20)
        assert session.build().n_members == 2
    with pytest.raises(SveError, match="No layer is left to train"):
        open_session(load_recipe_text(RECIPE.format(folder=folder).replace("heads_only", "sve"), "r"), Silent(), limit=20).build()
