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
PAIRS = [("sve", "bert"), ("sve", "vit"), ("sve", "llama"), ("sve_lora", "bert"), ("heads_only", "bert_mean")]
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
    return build_student(built.ensemble, built.backbone, spec, lab.store, 0, (0.0, 1.5))


@everywhere
def test_it_starts_as_the_averaged_network(lab: Any, method: str, network: str) -> None:
    built = moved(lab, method, network)
    student = student_of(lab, built, method)
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
    assert {"heads.evidence_weight_M", "heads.evidence_bias_M"} <= declared.keys()
    assert {id(p) for p in ensemble.parameters() if p.requires_grad} == {id(p) for p in declared.values()}
    roles = {group.role for group in ensemble.groups}
    assert roles == {"sve": {"sigma", "bias", "head"}, "sve_lora": {"sigma", "bias", "lora", "head"}, "heads_only": {"head"}}[
        method
    ] or (network == "llama" and roles == {"sigma", "head"})
    assert len(declared) == len(set(declared)) and ensemble.n_members == 1
    built = lab.build(network, method)
    output = ensemble(built.train.batch(np.arange(8))).logits_MBC
    assert output.shape == (1, 8, len(built.ensemble.classes) + 1)
    (torch.logsumexp(output[0], -1) - output[0, :, 0]).mean().backward()
    silent = [n for n, p in declared.items() if p.grad is None and "pooler" not in n]
    assert silent == []


def test_a_frozen_head_stays_frozen_and_the_evidence_trains(lab: Any) -> None:
    built = moved(lab, "sve", "llama", task={"head": "auto"})
    ensemble = student_of(lab, built, "sve").ensemble
    declared = ensemble.trainable()
    assert "heads.weight_MCF" not in declared and "heads.evidence_bias_M" in declared
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
def test_a_slow_class_head_leaves_the_evidence_its_own_rate(lab: Any, method: str, network: str) -> None:
    student = student_of(lab, moved(lab, method, network), method)
    before = student.ensemble.trainable()
    student.slow_heads(0.1)
    rates = {name: group.lr_scale for group in student.ensemble.groups if group.role == "head" for name in group.parameters}
    assert rates == {name: 1.0 if "evidence" in name else 0.1 for name in before if name.startswith("heads.")}
    assert student.ensemble.trainable().keys() == before.keys()
