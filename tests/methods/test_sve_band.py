"""Off-diagonals beside Σ: the definition, entries of each member's own, gradients, what is refused.

Shapes: M members, N rows, O out, I in, R rank, K bands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sve_cli.errors import SveError
from sve_cli.linear_forms import banded, banded_matrix, cheapest_banded
from sve_cli.methods.sve_band import BandedLinear


def linears(built: Any) -> list[BandedLinear]:
    return [linear for linear in built.ensemble.member_linears() if isinstance(linear, BandedLinear)]


def between_RR(linear: BandedLinear, member: int) -> Tensor:
    """The matrix between the singular vectors, read off a member's matrix, float64."""
    a_RI, b_OR = linear.a_RI.double(), linear.b_OR.double()
    return torch.linalg.pinv(b_OR) @ linear.merged(member)[0].double() @ torch.linalg.pinv(a_RI)


@pytest.mark.parametrize(("shared", "bands"), [(0, 1), (0, 2), (3, 0), (2, 1)])
def test_a_member_is_its_definition(lab: Any, shared: int, bands: int) -> None:
    built = lab.build("vit", "sve_band", params={"bands": bands, "shared_bands": shared, "sigma_init": 0.1})
    built.fit()
    for linear in linears(built):
        s_R = linear.s_R.double()
        a_RI, b_OR = linear.a_RI.double(), linear.b_OR.double()
        left_OR, right_RI = b_OR / b_OR.norm(dim=0), a_RI / a_RI.norm(dim=1, keepdim=True)
        for m in range(3):
            middle_RR = torch.diag(s_R * (1 + linear.delta_MR[m].detach().double()))
            entries = [(1 + k, linear.c_SR[k]) for k in range(shared)]
            entries += [(1 + shared + m * bands + k, linear.c_MKR[m, k]) for k in range(bands)]
            for offset, c_R in entries:
                for r in range(len(s_R)):
                    q = (r + offset) % len(s_R)
                    middle_RR[r, q] += c_R[r].detach().double() * (s_R[r] * s_R[q]).sqrt()
            torch.testing.assert_close(linear.merged(m)[0].double(), left_OR @ middle_RR @ right_RI, atol=2e-5, rtol=1e-5)
        for c in [linear.c_MKR] * (bands > 0) + [linear.c_SR] * (shared > 0):
            assert float(c.detach().abs().max()) > 1e-3
    torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=3e-5, rtol=3e-5)


def test_no_two_members_train_the_same_entries(lab: Any) -> None:
    built = lab.build("bert", "sve_band", params={"bands": 2, "shared_bands": 1, "sigma_init": 0.0})
    built.fit()
    linear = linears(built)[0]
    places = []
    for m in range(3):
        found_RR = between_RR(linear, m)
        shared = {(r, (r + 1) % linear.rank) for r in range(linear.rank)}
        places.append({(r, q) for r, q in (found_RR.abs() > 1e-4).nonzero().tolist() if r != q} - shared)
        assert len(places[-1]) > linear.rank
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]


@pytest.mark.parametrize("compute", [banded, banded_matrix])
def test_the_gradients_are_those_of_finite_differences(compute: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 6), (4, 6), (7, 4), (2, 4), (2, 2, 4), (2, 7))  # x, A, B, gain, c, bias
    arrays = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for i in (0, 3, 4, 5):
        arrays[i].requires_grad_()
    offsets = [[1, 2], [1, 3]]  # the first is the same for both members
    assert torch.autograd.gradcheck(lambda *given: compute(*given[:5], offsets, given[5]), arrays)
    x_MNI, a_RI, b_OR, gain_MR, c_MKR, bias_MO = (t.detach() for t in arrays)
    for m in range(2):
        middle_RR = torch.diag(gain_MR[m])
        for k, offset in enumerate(offsets[m]):
            for r in range(4):
                middle_RR[r, (r + offset) % 4] += c_MKR[m, k, r]
        expected_NO = x_MNI[m] @ (b_OR @ middle_RR @ a_RI).T + bias_MO[m]
        torch.testing.assert_close(compute(x_MNI, a_RI, b_OR, gain_MR, c_MKR, offsets, bias_MO)[m], expected_NO)


def test_many_rows_of_a_square_layer_are_computed_by_its_matrix() -> None:
    assert [cheapest_banded(n, 384, 384, 4) for n in (100, 400, 1600)] == ["factored", "factored", "materialised"]
    assert cheapest_banded(1600, 1536, 384, 4) == cheapest_banded(1600, 384, 1536, 4) == "factored"
    assert cheapest_banded(1600, 384, 384, 0) == "materialised"  # as `cheapest` has it


def test_both_forms_train_alike(lab: Any) -> None:
    ends = []
    for form in ("factored", "materialised"):
        built = lab.build("bert", "sve_band", params={"form": form, "sigma_init": 0.1, "biases": "member", "bias_init": 0.1})
        start = [linear.bias_MO.detach().clone() for linear in linears(built)]
        built.fit()
        kinds = [("delta_MR", "c_MKR", "c_SR", *(["bias_MO"] if "key" not in x.view.name else [])) for x in linears(built)]
        ends.append([getattr(x, k).detach().clone() for x, own in zip(linears(built), kinds, strict=True) for k in own])
        assert all(bool((x.bias_MO != b).any(1).all()) for x, b in zip(linears(built), start, strict=True))  # every member's train
    torch.testing.assert_close(ends[0], ends[1], atol=2e-5, rtol=1e-3)  # without key biases, to which attention is blind


def test_the_bands_learn_at_their_own_rate_and_start_at_zero(lab: Any) -> None:
    """Adam's first step is the learning rate, whatever the gradient's size."""
    built = lab.build("bert", "sve_band", params={"band_lr_scale": 0.25, "sigma_init": 0.0}, n_train=8)
    assert set(built.ensemble.parameter_table()) == {"sigma", "band", "bias", "head"}
    assert not any(linear.c_MKR.any() for linear in linears(built))
    built.fit(lr=1e-2, clip=None)
    layer = linears(built)[0]
    assert float(layer.delta_MR.detach().abs().max()) == pytest.approx(1e-2, rel=1e-3)
    assert float(layer.c_MKR.detach().abs().max()) == pytest.approx(2.5e-3, rel=1e-3)


def test_what_is_shared_trains_on_every_members_batch_and_counts_once(lab: Any) -> None:
    """Batched and one by one are the same; its gradient is the sum of what each member's own batch gives, alone too."""
    ends = []
    for execution in ("batched", "sequential"):
        built = lab.build("bert", "sve_band", params={"bands": 0, "shared_bands": 2, "sigma_init": 0.1})
        built.fit(member_execution=execution)
        ends.append(torch.stack([linear.c_SR.detach()[0, :4] for linear in linears(built)]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)
    assert float(ends[0].abs().min()) > 0
    table = built.ensemble.parameter_table()
    assert table["band"] == sum(2 * linear.rank for linear in linears(built))
    layer, rows = linears(built)[0], np.split(np.arange(24), 3)
    built.ensemble.set_training(False)  # no dropout

    def gradient_SR(members: list[int]) -> Tensor:
        inputs = [built.train.batch(rows[m]) for m in members]
        width = max(own["input_ids"].shape[1] for own in inputs)
        padded = {k: torch.stack([F.pad(own[k], (0, width - own[k].shape[1])) for own in inputs]) for k in inputs[0]}
        logits_MBC = built.ensemble(padded, members, per_member=True).logits_MBC
        labels_MB = torch.from_numpy(np.stack([built.train.labels_N[rows[m]] for m in members]))
        loss = F.cross_entropy(logits_MBC.flatten(0, 1), labels_MB.flatten(), reduction="sum")
        return torch.autograd.grad(loss, layer.c_SR)[0]

    own = [gradient_SR([m]) for m in range(3)]
    assert min(float(g.abs().max()) for g in own) > 1e-3
    torch.testing.assert_close(gradient_SR([0, 1, 2]), torch.stack(own).sum(0), atol=1e-4, rtol=1e-3)


def test_a_negligible_direction_is_left_alone(lab: Any) -> None:
    built = lab.build("bert", "sve_band")
    linear = linears(built)[0]
    with torch.no_grad():
        linear.s_R[-1] = 0.0
        linear.live_R[-1] = False
    (unit_R,) = linear._units_KR([1])
    assert unit_R[-1] == unit_R[-2] == 0.0 and bool((unit_R[:-2] > 0).all())


@pytest.mark.parametrize(
    ("params", "saying"),
    [
        ({"rank": 4}, "trains every direction"),
        ({"form": "residual"}, "not as a residual"),
        ({"sigma_grad_tokens": 0.25}, "from all tokens, but sigma_grad_tokens is 0.25"),
        ({"bands": 400}, "bands is 400 and shared_bands 2, but .* singular values"),
        ({"bands": 0, "shared_bands": 0}, "both 0"),
    ],
)
def test_what_is_refused(lab: Any, params: dict[str, Any], saying: str) -> None:
    with pytest.raises(SveError, match=saying):
        lab.build("bert", "sve_band", params=params)
