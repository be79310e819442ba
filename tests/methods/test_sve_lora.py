"""The hybrid: both updates add up, each is switched per target, and each has a learning rate of its own.

Shapes: M members, O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sve_cli.errors import SveError
from sve_cli.methods.lora_ensemble import LoraLinear
from sve_cli.methods.sve import SVELinear
from sve_cli.methods.sve_lora import HybridLinear


def kinds(built: Any) -> dict[str, str]:
    """Layer -> what trains in it, by the classes themselves."""
    named = {HybridLinear: "both", SVELinear: "sigma", LoraLinear: "lora"}
    return {linear.view.name: named[type(linear)] for linear in built.ensemble.member_linears()}


def test_both_on_every_target_by_default(lab: Any) -> None:
    built = lab.build("bert", "sve_lora")
    assert list(kinds(built)) == [linear.view.name for linear in lab.build("bert", "sve").ensemble.member_linears()]
    assert set(kinds(built).values()) == {"both"}
    assert set(built.ensemble.parameter_table()) == {"sigma", "lora", "bias", "head"}


def test_each_is_switched_per_target(lab: Any) -> None:
    query, dense = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.intermediate.dense"
    found = kinds(lab.build("bert", "sve_lora", params={"lora_targets": "attention"}))
    assert (found[query], found[dense], len(found)) == ("both", "sigma", 12)
    found = kinds(lab.build("bert", "sve_lora", params={"sigma_targets": "mlp", "lora_targets": ["query", "re:1.*dense"]}))
    assert found[query] == "lora"
    assert found[dense] == "sigma"
    assert found["bert.encoder.layer.1.intermediate.dense"] == "both"
    assert "bert.encoder.layer.0.attention.self.key" not in found
    narrowed = kinds(lab.build("bert", "sve_lora", params={"lora_targets": "attention"}, last_blocks=1, exclude=["re:key"]))
    assert len(narrowed) == 5
    assert all(name.startswith("bert.encoder.layer.1.") for name in narrowed)
    for key in ("sigma_targets", "lora_targets"):
        with pytest.raises(SveError, match=rf"^method\.params\.{key}\b.*matches no layer"):
            lab.build("bert", "sve_lora", params={key: "re:nowhere"})
    with pytest.raises(SveError, match="no layer would train"):
        lab.build("bert", "sve_lora", params={"sigma_targets": "none", "lora_targets": "none"})
    with pytest.raises(SveError, match="lora_alpha"):
        lab.build("bert", "sve_lora", params={"lora_alpha": 4.0})


def test_each_half_alone_is_the_method_it_comes_from(lab: Any) -> None:
    settings = {"biases": "frozen", "lora_lr_scale": 1.0, "sigma_init": 0.05}
    for params, method in (
        ({"lora_targets": "none"}, "sve"),
        ({"sigma_targets": "none", "lora_targets": "attention"}, "lora_ensemble"),
    ):
        half, whole = lab.build("bert", "sve_lora", params={**settings, **params}), lab.build("bert", method, params=settings)
        one, other = half.fit(), whole.fit()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("form", ["factored", "materialised", "residual"])
def test_a_member_is_the_sum_of_both(lab: Any, form: str) -> None:
    built = lab.build("vit", "sve_lora", params={"form": form, "sigma_init": 0.1})
    built.fit()
    for linear in built.ensemble.member_linears():
        u_OR, s_R, v_RI = torch.linalg.svd(linear.weight_OI.double(), full_matrices=False)
        for m in range(3):
            gain_R = 1 + linear.delta_MR[m].detach().double()
            update_OI = (linear.lora.B_MOR[m] @ linear.lora.A_MRI[m]).detach().double()
            expected = (u_OR * (s_R * gain_R)) @ v_RI + update_OI
            torch.testing.assert_close(linear.merged(m)[0].double(), expected, atol=1e-5, rtol=1e-5)
            assert float(update_OI.abs().max()) > 1e-3
    torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=3e-5, rtol=3e-5)


def test_the_updates_learn_at_their_own_rate(lab: Any) -> None:
    """Adam's first step is the learning rate, whatever the gradient's size."""
    built = lab.build("bert", "sve_lora", params={"lora_lr_scale": 0.25, "sigma_init": 0.0}, n_train=8)
    built.fit(lr=1e-2, clip=None)
    layer = next(iter(built.ensemble.member_linears()))
    assert float(layer.delta_MR.detach().abs().max()) == pytest.approx(1e-2, rel=1e-3)
    assert float(layer.lora.B_MOR.detach().abs().max()) == pytest.approx(2.5e-3, rel=1e-3)


def test_the_average_is_the_mean_of_the_members(lab: Any) -> None:
    built = lab.build("gpt2", "sve_lora", params={"lora_targets": "attention", "sigma_targets": "mlp"})
    built.fit()
    averaged = dict(built.ensemble.averaged_model().named_parameters())
    members = [dict(built.ensemble.member_model(m).named_parameters()) for m in range(3)]
    for name in (n for n in averaged if n in members[0]):
        torch.testing.assert_close(averaged[name], torch.stack([m[name] for m in members]).mean(0), atol=1e-6, rtol=1e-5)
