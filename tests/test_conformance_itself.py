"""The conformance matrix is no decoration: a toy method is picked up by it, and a broken sign in any method fails it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sve_cli.ensemble import MemberHeads, MemberLinear
from sve_cli.registry import METHODS
from tests import test_conformance as matrix

TOY = '''
"""A toy: every member scales the output of each target by one number of its own."""

from dataclasses import dataclass

import torch
from torch import nn

from sve_cli.ensemble import Ensemble, MemberContext, MemberLinear, ParameterGroup, keyed_generator, swap_linears
from sve_cli.recipe.spec import doc


@dataclass(frozen=True)
class Params:
    """Choices of the toy."""

    scale_init: float = doc("Spread of the scales at the start.", 0.05, low=0.0)


class ToyLinear(MemberLinear):
    def __init__(self, view, context, n_members, spread, seed):
        super().__init__(view, context)
        draws = [torch.randn((), generator=keyed_generator(seed, "toy", m, view.name)) for m in range(n_members)]
        self.scale_M = nn.Parameter(1 + spread * torch.stack(draws))

    def forward_MNI(self, x_MNI):
        y_MNO = x_MNI @ self.view.weight_OI.t() * self.scale_M[list(self.context.members)].reshape(-1, 1, 1)
        return y_MNO if self.view.bias is None else y_MNO + self.view.bias

    def merged(self, member):
        return self.view.weight_OI * self.scale_M[member].detach(), self.view.bias


class Toy:
    Params = Params

    @staticmethod
    def default_lr(params):
        return 1e-2

    @staticmethod
    def build(backbone, task, spec, factors, params, seed):
        network, context = backbone.fresh(), MemberContext(tuple(range(spec.members)))
        views = backbone.targets(spec, network)
        layers = swap_linears(network, views, lambda v: ToyLinear(v, context, spec.members, params.scale_init, seed))
        ensemble = Ensemble(backbone, network, task.make_heads(spec.members, seed), task.classes, context)
        ensemble.groups.append(ParameterGroup("scale", {f"{n}.scale_M": m.scale_M for n, m in layers.items()}))
        return ensemble
'''


@pytest.mark.parametrize("network", ["vit", "bert", "llama", "resnet"])
def test_a_method_is_one_file_and_one_line(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    (tmp_path / "toy_method.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(METHODS._entries, "toy", "toy_method:Toy")
    assert "toy" in list(METHODS)  # what the matrix runs over
    matrix.test_output_has_one_row_of_logits_and_features_per_member_and_sample(lab, "toy", network)
    matrix.test_a_quiet_start_is_the_checkpoint(lab, "toy", network)
    matrix.test_exactly_the_declared_parameters_train(lab, "toy", network)
    matrix.test_training_sees_what_evaluation_defines_and_plain_networks_answer(lab, "toy", network)
    matrix.test_some_members_are_a_slice_of_all(lab, "toy", network)
    sys.modules.pop("toy_method")


@pytest.mark.parametrize("method", list(METHODS))
def test_a_wrong_sign_in_the_forward_is_noticed(lab: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The sign of what the method computes: its layers where it has any, else its features, else its logits."""
    built = lab.build("bert", method)
    layers = {type(layer) for layer in built.ensemble.member_linears()}
    for kind in layers:
        right = kind.forward_MNI

        def wrong(self: MemberLinear, x_MNI: Tensor, right: Any = right) -> Tensor:
            return -right(self, x_MNI)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "forward_MNI", wrong)
    if not layers:
        base: Any = MemberHeads if built.ensemble.shares_features else type(built.ensemble)
        name = "forward" if built.ensemble.shares_features else "_features"
        whole = getattr(base, name)
        monkeypatch.setattr(base, name, lambda self, *args: -whole(self, *args))
    with pytest.raises(AssertionError):
        matrix.test_a_quiet_start_is_the_checkpoint(lab, method, "bert")
    if layers:  # whole networks compute both sides themselves; the quiet start is what knows the right answer
        with pytest.raises(AssertionError):
            matrix.test_training_sees_what_evaluation_defines_and_plain_networks_answer(lab, method, "bert")
