"""SVFit: one network, its largest singular values, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.errors import SveError
from sve_cli.methods.svfit import Params, SVFit
from sve_cli.recipe.loader import load_recipe_text
from sve_cli.recipe.spec import MethodSpec


def test_only_the_largest_values_train_from_the_checkpoint(lab: Any) -> None:
    built = lab.build("vit", "svfit", params={"rank": 5})
    shapes = {n: tuple(p.shape) for n, p in built.ensemble.trainable().items() if not n.startswith("heads.")}
    assert len(shapes) == 8
    assert set(shapes.values()) == {(1, 5)}
    for linear in built.ensemble.member_linears():
        assert torch.equal(linear.merged(0)[0], linear.weight_OI)
    built.fit(lr=1e-2)
    for linear in built.ensemble.member_linears():
        u_OR, s_R, v_RI = torch.linalg.svd(linear.weight_OI.double(), full_matrices=False)
        inside = u_OR.T @ linear.merged(0)[0].double() @ v_RI.T  # the singular values of the trained matrix, in W's basis
        moved_R = (inside.diagonal() - s_R).abs()
        assert float(moved_R[:5].min()) > 1e-4
        assert float(moved_R[5:].max()) < 1e-5
        assert float((inside - inside.diagonal().diag()).abs().max()) < 1e-5


def test_it_is_sve_of_one_member_without_noise(lab: Any) -> None:
    fixed = {"rank": 5, "sigma_init": 0.0, "biases": "frozen", "member_batches": "shared", "parametrisation": "absolute"}
    one, other = lab.build("bert", "svfit", params={"rank": 5}), lab.build("bert", "sve", members=1, params=fixed)
    one.fit(lr=1e-3), other.fit(lr=1e-3)
    assert np.array_equal(one.logits(), other.logits())


def test_it_is_one_network(lab: Any) -> None:
    text = "model: {name: x}\ndata: {name: y}\ntask: {name: text_classification}\nmethod: {name: svfit}\n"
    assert load_recipe_text(text, "recipe").method.members == 1
    backbone = lab.backbone("bert")
    with pytest.raises(SveError, match="svfit is one network, but method.members is 3"):
        SVFit.build(backbone, lab.task("bert", backbone), MethodSpec("svfit", 3), lab.store, Params(), 0)


def test_its_learning_rate_follows_the_parametrisation() -> None:
    assert (SVFit.default_lr(Params()), SVFit.default_lr(Params(parametrisation="relative"))) == (1e-3, 1e-2)


def test_one_network_in_the_file_fixes_no_other_methods_members() -> None:
    file = ["model: {name: x}", "data: {name: digits}", "task: {name: image_classification}", "method: {name: single, members: 1}"]
    text = "\n".join(file)
    assert load_recipe_text(text, "r.yaml").method.members == 1
    usual = load_recipe_text(text.replace(", members: 1", ""), "r.yaml", ["method.name=sve"]).method.members
    assert load_recipe_text(text, "r.yaml", ["method.name=sve"]).method.members == usual > 1
    assert load_recipe_text(text, "r.yaml", ["method.name='sve'", "method.members=3"]).method.members == 3
