"""What only SVE promises: which numbers train, where they start, what freezes them and where decay pulls them.

Shapes: M members, O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sve_cli.methods.sve import SVELinear


def linears(built: Any) -> dict[str, SVELinear]:
    return {linear.view.name: linear for linear in built.ensemble.member_linears()}


def test_the_trained_numbers_are_singular_values_biases_and_heads(lab: Any) -> None:
    built = lab.build("bert", "sve", members=2)
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("intermediate.dense", "output.dense")
    names = [f"bert.encoder.layer.{i}.{p}" for i in range(2) for p in parts]
    outs = {n: 64 if "intermediate" in n else 32 for n in names}
    expected = {f"{n}.delta_MR": (2, 32) for n in names} | {f"{n}.bias_MO": (2, outs[n]) for n in names}
    expected |= {"heads.weight_MCF": (2, 3, 32), "heads.bias_MC": (2, 3)}
    assert {n: tuple(p.shape) for n, p in built.ensemble.trainable().items()} == expected
    frozen = lab.build("bert", "sve", members=2, params={"biases": "frozen"})
    assert set(frozen.ensemble.trainable()) == {n for n in expected if not n.endswith("bias_MO")}


@pytest.mark.parametrize("network", ["vit", "bert", "resnet", "gpt2"])
@pytest.mark.parametrize("biases", ["member", "frozen"])
def test_every_form_computes_the_definition(lab: Any, network: str, biases: str) -> None:
    for form in ("factored", "materialised", "residual"):
        built = lab.build(network, "sve", params={"form": form, "sigma_init": 0.1, "biases": biases})
        torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=3e-5, rtol=3e-5)


def test_both_parametrisations_start_at_the_same_members(lab: Any) -> None:
    relative, absolute = (lab.build("bert", params={"parametrisation": p}) for p in ("relative", "absolute"))
    np.testing.assert_allclose(relative.logits(), absolute.logits(), atol=1e-5)
    name, layer = next(iter(linears(absolute).items()))
    torch.testing.assert_close(layer.delta_MR.detach(), linears(relative)[name].delta_MR.detach() * layer.s_R)


def test_the_start_has_the_spread_asked_for(lab: Any) -> None:
    layers = linears(lab.build("vit", members=8, params={"sigma_init": 0.05, "bias_init": 0.2}))
    gains = torch.cat([x.gain_MR(tuple(range(8))).flatten() for x in layers.values()])
    assert abs(float(gains.detach().std()) - 0.05) < 0.003
    assert abs(float(gains.detach().mean()) - 1) < 0.003
    shifts = torch.cat([(x.bias_MO - x.view.bias).flatten() for x in layers.values()])
    assert abs(float(shifts.detach().std()) - 0.2) < 0.01


def test_sigma_gradient_by_finite_differences_in_double_precision(lab: Any) -> None:
    built = lab.build("vit", members=2, params={"sigma_init": 0.1, "form": "factored"})
    network, layer = built.ensemble.network.double(), next(iter(linears(built).values()))
    inputs = {k: v.double() for k, v in built.test.batch(np.arange(4)).items()}
    folded, labels = {k: v.repeat(2, 1, 1, 1) for k, v in inputs.items()}, torch.tensor([0, 1, 2, 0] * 2)

    def loss() -> Tensor:
        built.ensemble.context.members = (0, 1)
        return F.cross_entropy(built.backbone.features(network, folded)[:, :3], labels)

    loss().backward()
    step, picked = 1e-6, [(0, 0), (1, 3), (0, 20), (1, 47)]
    for m, r in picked:
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                layer.delta_MR[m, r] += sign * step
                values.append(float(loss()))
                layer.delta_MR[m, r] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        assert layer.delta_MR.grad is not None
        assert abs(numeric - float(layer.delta_MR.grad[m, r])) < 1e-6 * max(1e-2, abs(numeric))


def test_negative_values_are_zero(lab: Any) -> None:
    for form in ("relative", "absolute"):
        layer = next(iter(linears(lab.build("bert", members=1, params={"parametrisation": form})).values()))
        with torch.no_grad():
            layer.delta_MR[0, 0] = -1.5 * (1.0 if form == "relative" else float(layer.s_R[0]))
        assert float(layer.gain_MR((0,))[0, 0].detach()) == 0.0
        merged_OI, _ = layer.merged(0)
        assert float((merged_OI @ layer.a_RI[0] / layer.a_RI[0].square().sum()).norm()) < 1e-4 * float(layer.s_R[0])


def test_directions_without_a_singular_value_are_frozen_at_gain_one(lab: Any, tmp_path: Any) -> None:
    folder = lab.root / "bert"
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state, name = load_file(folder / "model.safetensors"), "bert.encoder.layer.0.intermediate.dense"
    state[f"{name}.weight"] = state[f"{name}.weight"][:, :5] @ torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    state["bert.encoder.layer.1.output.dense.weight"] = torch.zeros(32, 64)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    built = lab.build("bert", params={"sigma_init": 0.1})
    built.fit()  # (only the copy below is rank-deficient; this one shows that the layer trains otherwise)
    assert float((linears(built)[name].gain_MR((0, 1, 2))[:, 5:] - 1).detach().abs().min()) > 0
    deficient = lab.build(str(tmp_path), params={"sigma_init": 0.1})
    deficient.fit()
    gain_MR = linears(deficient)[name].gain_MR((0, 1, 2)).detach()
    assert torch.equal(gain_MR[:, 5:], torch.ones(3, 27))
    assert float((gain_MR[:, :5] - 1).abs().min()) > 0
    assert torch.equal(linears(deficient)["bert.encoder.layer.1.output.dense"].gain_MR((0,)), torch.ones(1, 32))
    assert np.isfinite(deficient.logits()).all()


def decayed(lab: Any, **params: Any) -> tuple[Any, Any]:
    """An ensemble before and after three steps in which weight decay does almost all the work."""
    wanted = {"sigma_init": 0.1, "bias_init": 0.1, "train_norms": True, **params}
    start, built = lab.build("bert", params=wanted), lab.build("bert", params=wanted)
    built.fit(lr=1e-4, weight_decay=1e3, head_lr=1e-9, bias_lr=1e-4)  # pulls 10 % of the way a step; Adam moves 1e-4
    return start, built


@pytest.mark.parametrize("parametrisation", ["relative", "absolute"])
def test_weight_decay_pulls_toward_the_checkpoint(lab: Any, parametrisation: str) -> None:
    start, built = decayed(lab, parametrisation=parametrisation)
    for name, layer in linears(built).items():
        first = linears(start)[name]
        torch.testing.assert_close(layer.delta_MR.detach(), 0.9**3 * first.delta_MR.detach(), atol=4e-4, rtol=0)
        bias_O = layer.view.bias
        torch.testing.assert_close(layer.bias_MO - bias_O, 0.9**3 * (first.bias_MO - bias_O), atol=4e-4, rtol=0)
    norms = {n: p for n, p in built.ensemble.trainable().items() if "LayerNorm" in n}
    plain = dict(built.backbone.network.named_parameters())
    assert len(norms) == 8
    for name, parameter in norms.items():
        own = plain[name.replace("weight_MD", "weight").replace("bias_MD", "bias")]
        torch.testing.assert_close(parameter.detach(), own.expand_as(parameter), atol=4e-4, rtol=0)


def test_weight_decay_toward_zero_is_the_papers(lab: Any) -> None:
    for parametrisation in ("relative", "absolute"):
        start, built = decayed(lab, parametrisation=parametrisation, decay_toward="zero")
        for name, layer in linears(built).items():
            unit = 1.0 if parametrisation == "relative" else layer.s_R
            expected = 0.9**3 * (unit + linears(start)[name].delta_MR.detach())
            torch.testing.assert_close(unit + layer.delta_MR.detach(), expected, atol=4e-4, rtol=1e-5)


@pytest.mark.parametrize("network", ["vit", "bert", "llama", "gpt2"])
def test_members_may_own_their_norms(lab: Any, network: str) -> None:
    quiet = {"sigma_init": 0.0, "bias_init": 0.0}
    plain, built = lab.build(network, params=quiet), lab.build(network, params={**quiet, "train_norms": True})
    np.testing.assert_allclose(built.logits(), plain.logits(), atol=1e-5)
    norms = {n: p.detach().clone() for n, p in built.ensemble.trainable().items() if n.endswith("_MD")}
    assert len(norms) >= 4
    built.fit()
    for name, before in norms.items():
        after = built.ensemble.trainable()[name]
        assert float((after - before).detach().abs().amax(-1).min()) > 1e-5  # every member of every norm
        assert not torch.equal(after[0], after[1])
    torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=2e-5, rtol=2e-5)
    inputs = built.test.batch(np.arange(11))
    for m in range(3):
        torch.testing.assert_close(
            built.backbone.logits(built.ensemble.member_model(m), inputs), torch.from_numpy(built.logits()[m]), atol=2e-5, rtol=2e-5
        )


def test_norms_move_to_another_precision_with_the_network(lab: Any) -> None:
    built = lab.build("bert", params={"train_norms": True})
    built.ensemble.double()
    norms = [m for m in built.ensemble.network.modules() if type(m).__name__ == "MemberNorm"]
    assert {m.plain[0].weight.dtype for m in norms} == {torch.float64}


def test_the_average_is_the_mean_of_the_members(lab: Any) -> None:
    for network in ("bert", "resnet", "gpt2"):
        built = lab.build(network, params={"sigma_init": 0.1})
        averaged = dict(built.ensemble.averaged_model().named_parameters())
        members = [dict(built.ensemble.member_model(m).named_parameters()) for m in range(3)]
        for name in (n for n in averaged if n in members[0]):
            torch.testing.assert_close(averaged[name], torch.stack([m[name] for m in members]).mean(0), atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_and_casts_the_factors_once(lab: Any) -> None:
    built = lab.build("bert")
    exact = built.training_logits()
    layer = next(iter(linears(built).values()))
    with torch.autocast("cpu", torch.bfloat16):
        rough = built.training_logits()
        first = dict(layer._cast)
        built.training_logits()
    assert {name: tensor.dtype for name, tensor in first.items()} == {"a_RI": torch.bfloat16, "b_OR": torch.bfloat16}
    assert all(layer._cast[name] is tensor for name, tensor in first.items())
    assert 0 < float((rough.float() - exact).abs().max()) < 0.1 * float(exact.std())
