"""Dropout with masks of each member's own, and attention with it: the plain formulas, the rate, and what the draws depend on.

Shapes: N batch, H heads, T queries, S keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sve_cli.recipe.spec import TrainSpec
from sve_cli.training import attention as attention_module
from sve_cli.training import member_dropout
from sve_cli.training.attention import attention
from sve_cli.training.dropout import Draws, times_mask

MASKS = ["none", "padding", "expanded", "added", "per head", "dead"]


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor, rate: float, causal: bool) -> Tensor:
    """The formula, written out."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return torch.nan_to_num(torch.softmax(scores, -1)) * keep / (1 - rate) @ v


def mask_of(kind: str) -> Tensor | None:
    seen_NS = torch.arange(5) < torch.tensor([5, 3, 4]).unsqueeze(1)
    if kind == "dead":
        return torch.tensor([5, 0, 4]).view(3, 1, 1, 1) > torch.arange(5)
    made = {"padding": seen_NS[:, None, None], "expanded": seen_NS[:, None, None].expand(3, 1, 5, 5),
            "added": torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5),
            "per head": torch.linspace(-1, 1, 50, dtype=torch.float64).view(1, 2, 5, 5)}  # fmt: skip
    return made.get(kind)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("chunk", "again"), [(25, True), (60, False), (60, True), (10_000, False)])
def test_attention_is_its_formula_and_so_are_the_gradients(
    kind: str, causal: bool, chunk: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand((3, 2, 5, 5), generator=generator) > 0.3
    found = []
    for compute in ("plain", "ours"):
        generator.manual_seed(1)
        q, k, v = (torch.randn((3, 5, 2, 4), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
        heads = [x.transpose(1, 2) for x in (q, k, v)]
        mask = mask_of(kind)
        if compute == "plain":
            out = plain(*heads, mask, keep, 0.3, causal)
        else:
            out = attention(*heads, mask, causal, None, keep, 0.3, again)
        grads = torch.autograd.grad((out.sin() * torch.arange(1.0, 5.0)).sum(), (q, k, v))
        found.append([out.detach(), *grads])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, torch.nan_to_num(expected), atol=1e-9, rtol=1e-9)


def test_without_dropping_it_is_the_attention_of_torch() -> None:
    q, k, v = (torch.randn(3, 2, 5, 4) for _ in range(3))
    keep = torch.ones((3, 2, 5, 5), dtype=torch.bool)
    for mask in (mask_of("padding"), mask_of("dead"), None):
        torch.testing.assert_close(attention(q, k, v, mask, False, 0.3, keep, 0.0),
                                   F.scaled_dot_product_attention(q, k, v, mask, scale=0.3))  # fmt: skip


def test_a_mask_is_multiplied_in_forward_and_backward() -> None:
    keep = torch.rand(70, 1000) > 0.1  # more than one piece
    x = torch.randn((1000, 70), dtype=torch.float64).t().requires_grad_()
    expected = x * keep / 0.9
    torch.testing.assert_close(times_mask(x.detach(), keep, 0.1), expected.detach(), atol=1e-12, rtol=1e-12)
    with member_dropout(0, (0,), (0,)):
        y = F.dropout(x, 0.1)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, (y.detach() != 0).double() / 0.9, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_is_what_was_asked_for(rate: float) -> None:
    draws = Draws([np.random.Generator(np.random.SFC64(s)) for s in (1, 2)])
    kept = draws.keep(torch.Size((400, 1001)), rate).double().mean(1)
    assert abs(float(kept.mean()) - (1 - rate)) < 4 * (rate * (1 - rate) / 400_400) ** 0.5 + 1e-5
    assert abs(float(kept[:200].mean() - kept[200:].mean())) < 4 * (2 * rate * (1 - rate) / 200_200) ** 0.5 + 1e-5


def test_each_member_draws_for_itself() -> None:
    x = torch.ones(6, 50)

    def draw(members: tuple[int, ...], key: int = 0, seed: int = 0) -> Tensor:
        with member_dropout(seed, members, (key,)):
            return torch.cat([F.dropout(x[: 2 * len(members)], 0.5), F.dropout(x[: 2 * len(members)], 0.5)], 1)

    together = draw((0, 1, 2))
    for m in range(3):
        assert torch.equal(draw((m,)), together[2 * m : 2 * m + 2])
    assert torch.equal(draw((0, 1, 2)), together)
    for other in (draw((0, 1, 2), key=1), draw((0, 1, 2), seed=1), draw((3, 4, 5))):
        assert not torch.equal(other, together)
    assert not torch.equal(together[:2], together[2:4]) and not torch.equal(together[:, :50], together[:, 50:])


def test_what_is_not_taken_is_computed_by_torch() -> None:
    q, k = torch.randn(2, 4, 3, 4), torch.randn(2, 2, 3, 4)
    with member_dropout(0, (0,), (0,)):
        assert F.dropout(q, 0.5, training=False) is q
        torch.manual_seed(0)
        ours = F.dropout(q.half(), 0.5)
        assert F.scaled_dot_product_attention(q, k, k, dropout_p=0.1, enable_gqa=True).shape == q.shape
        assert torch.equal(F.scaled_dot_product_attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
    torch.manual_seed(0)
    assert torch.equal(F.dropout(q.half(), 0.5), ours)


def test_bfloat16_drops_the_same() -> None:
    """The same masks as in float32, in both directions."""
    x = torch.linspace(1, 2, 4000).view(4, 1000).requires_grad_()
    low = x.detach().bfloat16().requires_grad_()
    outs = []
    for given in (x, low):
        with member_dropout(0, (0, 1), (0,)):
            outs.append(F.dropout(given, 0.1))
    grads = torch.autograd.grad(outs[0].sum(), x)[0], torch.autograd.grad(outs[1].sum(), low)[0]
    for wanted, got in (outs, grads):
        assert got.dtype == torch.bfloat16 and torch.equal(got == 0, wanted == 0)
        torch.testing.assert_close(got.float(), wanted, atol=0, rtol=2**-7)
    with member_dropout(0, (0,), (0,)):
        assert not F.dropout(low, 1.0).any()


@pytest.mark.parametrize("save", [False, True])
def test_attention_of_a_lowered_network_is_that_of_float32_rounded(save: bool) -> None:
    """Under autocast, as training calls it: the same draws, gradients too, in the type that torch's own attention gives."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn((4, 2, 9, 4), generator=generator).bfloat16().float().requires_grad_() for _ in range(3)]
    low = [t.detach().bfloat16().requires_grad_() for t in whole]
    found = []
    for given, lowered in ((whole, False), (low, True)):
        with member_dropout(0, (0, 1), (0,), save), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            out = F.scaled_dot_product_attention(*given, dropout_p=0.3)
        assert out.dtype == (torch.bfloat16 if lowered else torch.float32)
        found.append([out, *torch.autograd.grad(out.float().sin().sum(), given)])
    with torch.autocast("cpu", torch.bfloat16):
        assert F.scaled_dot_product_attention(*whole, dropout_p=0.3).dtype == found[1][0].dtype
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got.float(), wanted, atol=0.03, rtol=0.02)


def test_members_drop_the_same_in_bfloat16_too(lab: Any) -> None:
    built = lab.build("bert", n_train=24, params={"dropout": "checkpoint"})
    trainer = built.trainer(TrainSpec(precision="bfloat16"))
    built.ensemble.set_training(True)
    short = np.flatnonzero(built.train.lengths_N == built.train.lengths_N.min())[:1].repeat(4)
    with torch.no_grad():
        together = trainer._logits((0, 1, 2), [short] * 3, (0, 0, 0)).float()
        alone = torch.cat([trainer._logits((m,), [short], (0, 0, 0)).float() for m in range(3)])
        later = trainer._logits((0, 1, 2), [short] * 3, (0, 0, 1)).float()
    near = float((together - alone).abs().max())
    assert near < 0.25 * float((together - later).abs().max())  # other draws differ by far more than rounding does
    assert float(together.std(1).min()) > 0  # equal rows of one member are dropped differently


def gradients(lab: Any, execution: str, **params: Any) -> dict[str, Tensor]:
    """The Σ of three members after one step of plain length: batched, or one after another."""
    built = lab.build("bert", n_train=24, params={"dropout": "checkpoint", **params})
    lengths = built.train.lengths_N
    built.train.lengths_N = np.full_like(lengths, lengths.min())  # so that padding is the same either way
    spec = TrainSpec(epochs=1, batch_size=24, precision="float32", member_execution=execution)  # type: ignore[arg-type]
    built.trainer(spec, 2e-2).fit()
    return built.ensemble.state()


def test_members_drop_the_same_batched_and_one_by_one(lab: Any) -> None:
    batched, alone = (gradients(lab, e) for e in ("batched", "sequential"))
    without = gradients(lab, "batched", dropout="off")
    for name, tensor in batched.items():
        torch.testing.assert_close(alone[name], tensor, atol=2e-4, rtol=1e-3)
    assert any(not torch.allclose(without[n], t, atol=2e-4, rtol=1e-3) for n, t in batched.items())
