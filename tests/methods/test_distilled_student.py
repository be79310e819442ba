"""The student: it starts at the members' mean, and exactly what it declares trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.errors import NotExportable
from sve_cli.methods.distilled import FAMILIES, Student, build_student, require_distillable
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import METHODS
from sve_cli.tasks.common import tensor_to

CPU = torch.device("cpu")
PAIRS = [("sve", "bert"), ("sve", "vit"), ("sve", "llama"), ("sve_lora", "bert"), ("sve_band", "bert"), ("heads_only", "bert_mean")]
everywhere = pytest.mark.parametrize(("method", "network"), PAIRS)


def moved(lab: Any, method: str, network: str, **keys: Any) -> Any:
    """An ensemble whose parameters are as far apart as training would leave them."""
    built = lab.build(network, method, **keys)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.ensemble.trainable().items():
            scale = 0.6 if "delta" in name else 0.1  # some singular values below 0, which are cut at 0
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return built


def student_of(lab: Any, built: Any, method: str, params: dict[str, Any] | None = None) -> Student:
    spec = MethodSpec(name=method, members=3, params=params or {})
    return build_student(built.ensemble, built.backbone, spec, lab.store, 0)


def test_a_mean_with_more_off_diagonals_than_a_layer_has_is_named(lab: Any) -> None:
    for members in (14, 15):  # 2 shared and 2 a member: 30 and 32 of the 31 that 32 singular values have room for
        built = lab.build("bert", "sve_band", members=members, targets=["query"])
        spec = MethodSpec(name="sve_band", members=members, targets=["query"])
        if members == 14:
            assert build_student(built.ensemble, built.backbone, spec, lab.store, 0).ensemble.n_members == 1
            continue
        with pytest.raises(NotExportable, match=r"mean of 15 members has 32 off-diagonals, and '.*query' has room for 31"):
            build_student(built.ensemble, built.backbone, spec, lab.store, 0)


@everywhere
def test_it_starts_as_the_averaged_network(lab: Any, method: str, network: str) -> None:
    built = moved(lab, method, network)
    student = student_of(lab, built, method)
    student.calibrate(1.0, (0.0, 1.5))
    inputs = tensor_to(built.test.batch(np.arange(8)), CPU)
    logits, log_precision = student.outputs(inputs)
    with torch.inference_mode():
        averaged = built.backbone.logits(built.ensemble.averaged_model(), inputs)
        exported = built.backbone.logits(student.model(), inputs)
    torch.testing.assert_close(logits, averaged, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, exported, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_precision, torch.full((8,), 1.5))


@pytest.mark.parametrize("params", [{"parametrisation": "absolute", "train_norms": True}, {"rank": 12, "rank_start": 4}])
def test_it_starts_as_the_averaged_network_with_other_parameters(lab: Any, params: dict[str, Any]) -> None:
    built = moved(lab, "sve", "bert", params=params)
    student = student_of(lab, built, "sve", params)
    inputs = built.test.batch(np.arange(4))
    with torch.inference_mode():
        averaged = built.backbone.logits(built.ensemble.averaged_model(), inputs)
    torch.testing.assert_close(student.outputs(inputs)[0], averaged, atol=1e-4, rtol=1e-4)


@everywhere
def test_exactly_the_declared_parameters_train_and_all_get_a_gradient(lab: Any, method: str, network: str) -> None:
    ensemble = student_of(lab, moved(lab, method, network), method).ensemble
    declared = ensemble.trainable()
    assert not any("evidence" in name for name in declared)  # fitted afterwards
    assert {id(p) for p in ensemble.parameters() if p.requires_grad} == {id(p) for p in declared.values()}
    roles = {group.role for group in ensemble.groups}
    more = {"sve": set(), "sve_lora": {"lora"}, "sve_band": {"band"}}
    expected = {"head"} if method == "heads_only" else {"sigma", "bias", "head"} | more[method]
    assert roles == (expected - {"bias"} if network == "llama" else expected)
    assert len(declared) == len(set(declared)) and ensemble.n_members == 1
    built = lab.build(network, method)
    output = ensemble(built.train.batch(np.arange(8))).logits_MBC
    assert output.shape == (1, 8, len(built.ensemble.classes) + 1)
    (torch.logsumexp(output[0], -1) - output[0, :, 0]).mean().backward()
    silent = [n for n, p in declared.items() if p.grad is None and "pooler" not in n]
    assert silent == []


def test_a_frozen_head_stays_frozen(lab: Any) -> None:
    built = moved(lab, "sve", "llama", task={"head": "auto"})
    student = student_of(lab, built, "sve")
    ensemble, declared = student.ensemble, student.ensemble.trainable()
    assert not any(name.startswith("heads.") for name in declared)
    student.calibrate(1.0, (-1.0, 2.0))
    assert {name: float(tensor) for name, tensor in student.evidence().items()} == {"weight": -1.0, "bias": 2.0}
    assert torch.equal(ensemble.heads.weight_MCF[0], built.ensemble.heads.weight_MCF[0])
    ensemble.load_trained(ensemble.state())


@pytest.mark.parametrize("method", [m for m in METHODS if m not in FAMILIES])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(NotExportable, match=f"members of {method} have no meaningful mean"):
        require_distillable(method, 4)


def test_one_member_is_refused() -> None:
    with pytest.raises(NotExportable, match="one member"):
        require_distillable("svfit", 1)


@pytest.mark.parametrize(("method", "network"), [("sve", "bert"), ("sve", "llama"), ("heads_only", "bert_mean")])
def test_a_slow_class_head_leaves_the_rest_its_rate(lab: Any, method: str, network: str) -> None:
    student = student_of(lab, moved(lab, method, network), method)
    before = {name: group.lr_scale for group in student.ensemble.groups for name in group.parameters}
    student.slow_heads(0.1)
    rates = {name: group.lr_scale for group in student.ensemble.groups for name in group.parameters}
    assert rates == {name: 0.1 if name.startswith("heads.") else rate for name, rate in before.items()}


@pytest.mark.parametrize("network", ["bert", "vit", "llama"])
def test_a_temperature_goes_into_the_head(lab: Any, network: str) -> None:
    built = moved(lab, "sve", network)
    student = student_of(lab, built, "sve")
    inputs = tensor_to(built.test.batch(np.arange(4)), CPU)
    before, _ = student.outputs(inputs)
    student.calibrate(2.5, (-1.0, 3.0))
    after, log_precision = student.outputs(inputs)
    with torch.inference_mode():
        exported = built.backbone.logits(student.model(), inputs)
    torch.testing.assert_close(after, before / 2.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported, after, atol=1e-4, rtol=1e-4)
    entropy = torch.special.entr(torch.softmax(after.double(), -1)).sum(-1)
    torch.testing.assert_close(log_precision.double(), 3.0 - (entropy + 1e-3).log(), atol=1e-4, rtol=1e-4)
