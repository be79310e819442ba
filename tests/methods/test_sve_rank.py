"""Top-k: the largest directions only, in every form, and the schedule that widens them.

Shapes: M members, N rows, O out, I in, R rank.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sve_cli import linear_forms
from sve_cli.backbone import LinearView
from sve_cli.ensemble import MemberContext
from sve_cli.errors import SveError
from sve_cli.factors import decompose_weight
from sve_cli.methods.sve import Params, SVELinear
from sve_cli.recipe.spec import TrainSpec
from sve_cli.training import Checkpointer

FORMS = ["factored", "materialised", "residual"]


def make_layer(shape: tuple[int, int], members: int = 2, **params: Any) -> SVELinear:
    """A layer on a random W, its biases frozen."""
    torch.manual_seed(0)
    module = nn.Linear(shape[1], shape[0]).requires_grad_(False)
    factors = decompose_weight(module.weight, "layer")
    settings = Params(**{"biases": "frozen", "sigma_init": 0.2, **params})
    context = MemberContext(tuple(range(members)))
    return SVELinear(LinearView("layer", "linear", module), context, factors, settings, members, 0)


def linears(built: Any) -> dict[str, SVELinear]:
    return {linear.view.name: linear for linear in built.ensemble.member_linears()}


def test_a_layer_by_hand() -> None:
    module = nn.Linear(2, 2, bias=False).requires_grad_(False)
    module.weight.copy_(torch.tensor([[0.0, 2.0], [5.0, 0.0]]))
    view, factors = LinearView("layer", "linear", module), decompose_weight(module.weight, "layer")
    for form in FORMS:
        params = Params(form=form, rank=1, sigma_init=0.0, biases="frozen")  # type: ignore[arg-type]
        layer = SVELinear(view, MemberContext((0,)), factors, params, 1, 0)
        layer.delta_MR.data.fill_(1.0)  # the singular value 5 becomes 10; 2 stays
        torch.testing.assert_close(layer(torch.tensor([[1.0, 1.0]])), torch.tensor([[2.0, 10.0]]))
        torch.testing.assert_close(layer.merged(0)[0], torch.tensor([[0.0, 2.0], [10.0, 0.0]]))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_the_forms_and_their_gradients_agree_at_every_rank(shape: tuple[int, int]) -> None:
    x_MNI = torch.randn(2, 4, shape[1], generator=torch.Generator().manual_seed(1))
    for rank in range(1, min(shape) + 1):
        found = []
        for form in FORMS:
            layer, x = make_layer(shape, form=form, rank=rank), x_MNI.clone().requires_grad_(True)
            y_MNO = layer.forward_MNI(x)
            y_MNO.sin().sum().backward()
            assert layer.delta_MR.shape == (2, rank)
            expected = torch.stack([F.linear(x_MNI[m], layer.merged(m)[0], layer.view.bias) for m in range(2)])
            torch.testing.assert_close(y_MNO.detach(), expected, atol=1e-5, rtol=1e-5)
            found.append((y_MNO.detach(), x.grad, layer.delta_MR.grad))
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_sigma_by_finite_differences(form: str) -> None:
    layer = make_layer((7, 5), form=form, rank=3).double()
    x_MNI = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def f(x: Tensor, delta_MR: Tensor) -> Tensor:
        gain_MR = torch.relu(1 + delta_MR)
        if form == "factored":
            return linear_forms.factored(x, layer.a_RI, layer.b_OR, F.pad(gain_MR, (0, 2), value=1.0))
        if form == "residual":
            return linear_forms.residual(x, layer.weight_OI, layer.a_RI, layer.b_OR, gain_MR)
        return linear_forms.materialised(x, layer.a_RI, layer.b_OR, gain_MR, layer.weight_OI)

    delta_MR = layer.delta_MR.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(f, (x_MNI.requires_grad_(True), delta_MR))


def test_gradient_through_a_network_by_finite_differences(lab: Any) -> None:
    built = lab.build("vit", members=2, params={"sigma_init": 0.1, "rank": 6})
    network, layer = built.ensemble.network.double(), linears(built)["blocks.0.mlp.fc1"]
    folded = {k: v.double().repeat(2, 1, 1, 1) for k, v in built.test.batch(torch.arange(4).numpy()).items()}

    def loss() -> Tensor:
        built.ensemble.context.members = (0, 1)
        return F.cross_entropy(built.backbone.features(network, folded)[:, :3], torch.tensor([0, 1, 2, 0] * 2))

    loss().backward()
    for m, r in ((0, 0), (1, 5)):
        values = []
        for sign in (1, -1):
            layer.delta_MR.data[m, r] += sign * 1e-6
            values.append(float(loss().detach()))
            layer.delta_MR.data[m, r] -= sign * 1e-6
        numeric = (values[0] - values[1]) / 2e-6
        assert layer.delta_MR.grad is not None
        assert abs(numeric - float(layer.delta_MR.grad[m, r])) < 1e-6 * max(1e-2, abs(numeric))


def test_the_noise_of_the_largest_directions_is_that_of_all() -> None:
    every, some = make_layer((7, 5)), make_layer((7, 5), rank=3)
    assert torch.equal(some.delta_MR, every.delta_MR[:, :3])
    widening = make_layer((7, 5), rank=4, rank_start=2)
    assert torch.equal(widening.delta_MR[:, :2], every.delta_MR[:, :2])
    assert float(widening.delta_MR[:, 2:].detach().abs().max()) == 0.0
    assert torch.equal(make_layer((7, 5), rank=99).delta_MR, every.delta_MR)


def test_the_cost_falls_with_the_rank_and_unneeded_factors_go() -> None:
    # Square d = 64, N rows: factored 2·N·64·128; residual 2·N·64² + 2·N·k·128: below it under k = 32.
    assert linear_forms.training_flops("residual", 10, 64, 64, 8) == 2 * 10 * 64**2 + 2 * 10 * 8 * 128
    assert linear_forms.training_flops("factored", 10, 64, 64, 8) == linear_forms.training_flops("factored", 10, 64, 64)
    assert linear_forms.training_flops("materialised", 10, 64, 64, 8) == 2 * 10 * 64**2 + 64**2 * 8 + 10 * 8 * 128
    assert [linear_forms.cheapest(10, 64, 64, k) for k in (8, 24, 31, 40, 64)] == ["residual"] * 2 + ["factored"] * 3
    assert linear_forms.cheapest(10, 256, 64, 40) == "factored"  # a 4:1 layer saves below a fifth of its rank only
    assert linear_forms.cheapest(10, 256, 64, 8) == "residual"
    assert [make_layer((16, 16), rank=k).a_RI.shape[0] for k in (4, 12)] == [4, 16]
    assert make_layer((16, 16), rank=4).b_OR.shape == (16, 4)
    assert make_layer((16, 16), rank=4, form="factored").b_OR.shape == (16, 16)


@pytest.mark.parametrize(("network", "rank"), [("vit", 1), ("bert", 20), ("resnet", 4), ("gpt2", 4)])
def test_training_sees_what_evaluation_defines(lab: Any, network: str, rank: int) -> None:
    for form in ("auto", *FORMS):
        built = lab.build(network, params={"rank": rank, "sigma_init": 0.1, "form": form})
        torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=3e-5, rtol=3e-5)


def test_a_schedule_may_not_narrow(lab: Any) -> None:
    for method in ("sve", "sve_lora"):
        with pytest.raises(SveError, match=r"rank_start is 8, above rank \(4\)"):
            lab.build("bert", method, params={"rank": 4, "rank_start": 8})


def test_the_width_follows_the_share_of_training() -> None:
    layer = make_layer((16, 16), rank=10, rank_start=2, widen_over=0.5)
    widths = []
    for share in (0.0, 0.1, 0.25, 0.49, 0.5, 0.8, 1.0):
        layer.widen(share)
        widths.append(layer.width)
    assert widths == [2, 3, 6, 9, 10, 10, 10]


def run(lab: Any, epochs: int, loaded: Any = None, **params: Any) -> tuple[Any, list[Any]]:
    """Train on five steps an epoch under a constant rate; the ensemble, and all checkpoints."""
    saved: list[Any] = []

    def save(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        saved.append(({n: t.detach().clone() for n, t in tensors.items()}, json.loads(json.dumps(meta))))

    built = lab.build("bert", n_train=36, params={"rank": 12, "rank_start": 2, "sigma_init": 0.1, **params})
    plain = {"precision": "float32", "warmup": 0.0, "schedule": "constant", "select": "last", "checkpoint_minutes": 0.0}
    spec = TrainSpec(epochs=epochs, batch_size=8, weight_decay=0.1, **plain)  # type: ignore[arg-type]
    built.trainer(spec, 1e-2, 0, Checkpointer(save, loaded)).fit()
    return built, saved


@pytest.mark.parametrize("decay_toward", ["pretrained", "zero"])
@pytest.mark.parametrize("parametrisation", ["relative", "absolute"])
def test_directions_move_only_once_they_are_live(lab: Any, decay_toward: str, parametrisation: str) -> None:
    params = {"widen_over": 1.0, "decay_toward": decay_toward, "parametrisation": parametrisation}
    start = linears(lab.build("bert", params={"rank": 12, "rank_start": 2, "sigma_init": 0.1, **params}))
    built, saved = run(lab, 2, **params)
    for name in linears(built):
        before = start[name].delta_MR.detach()
        for done, width in ((1, 2), (5, 6), (6, 7), (10, 11)):  # the last of `done` steps had 2 + 10 · (done - 1) / 10 directions
            now = saved[done - 1][0][f"state/{name}.delta_MR"]
            assert float((now - before).abs()[:, :width].min()) > 0, (name, done)
            assert float(now[:, width:].abs().max()) == 0.0, (name, done)


def test_a_killed_run_goes_on_widening_to_the_same_bits(lab: Any) -> None:
    built, saved = run(lab, 2)
    assert len(saved) == 10
    for k in (2, 4, 6):
        again, later = run(lab, 2, loaded=saved[k])
        assert len(later) == 10 - k - 1
        assert all(torch.equal(t, again.ensemble.state()[n]) for n, t in built.ensemble.state().items())
        assert all(layer.width == 12 for layer in linears(again).values())


def test_the_loop_tells_the_ensemble_how_far_it_is(lab: Any) -> None:
    built, shares = lab.build("bert", n_train=16), []
    built.ensemble.on_progress = shares.append
    built.fit(epochs=2)
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0]


def sigma_gradient(layer: SVELinear, x_MNI: Tensor) -> Tensor:
    layer.delta_MR.grad = None
    (layer.forward_MNI(x_MNI).sin() * torch.arange(1.0, 4.0)).sum().backward()
    assert layer.delta_MR.grad is not None
    return layer.delta_MR.grad.clone()


@pytest.mark.parametrize(("rank", "n"), [(None, 40), (2, 41)])
def test_a_gradient_from_some_of_the_rows_has_the_gradient_of_all_as_its_mean(rank: int | None, n: int) -> None:
    torch.manual_seed(1)
    x_MNI = torch.randn(2, n, 3)
    whole = make_layer((3, 3), rank=rank, form="materialised")
    some = make_layer((3, 3), rank=rank, form="materialised", sigma_grad_tokens=0.25)
    assert torch.equal(some.forward_MNI(x_MNI), whole.forward_MNI(x_MNI))
    exact = sigma_gradient(whole, x_MNI)
    torch.testing.assert_close(sigma_gradient(some, x_MNI), exact)  # outside of training steps: all rows
    draws = []
    for step in range(400):
        some.context.draw = (0, 0, 0, step)
        draws.append(sigma_gradient(some, x_MNI))
    found = torch.stack(draws)
    error = (found.mean(0) - exact) / (found.std(0) / len(draws) ** 0.5)
    assert float(error.abs().max()) < 4
    assert float(found.std(0).min()) > 0.01
    some.context.draw = (0, 0, 0, 7)
    assert torch.equal(sigma_gradient(some, x_MNI), draws[7])


@pytest.mark.parametrize(("n", "share", "k"), [(40, 0.25, 10), (41, 0.25, 10), (3, 0.25, 1), (9, 1 / 3, 3)])
def test_every_row_is_drawn_as_often(n: int, share: float, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([linear_forms.drawn_rows(n, share, generator) for _ in range(1500)])
    assert drawn.shape == (1500, k)
    assert all(len(set(row.tolist())) == k for row in drawn[:100])
    counts = torch.bincount(drawn.flatten(), minlength=n).double()
    assert float((counts / 1500 - k / n).abs().max()) < 5 * (k / n / 1500) ** 0.5
