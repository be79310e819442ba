"""The distillation's targets and loss, and that the loop resumes it to the bit.

Shapes: M members, N samples, B batch, C classes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet

from sve_cli.methods.distilled import build_student
from sve_cli.prediction import predict_logits
from sve_cli.recipe.spec import MethodSpec, TrainSpec
from sve_cli.training import Checkpointer, Trainer
from sve_cli.training.distillation import Distillation, Teacher, best_constant, best_line

CPU = torch.device("cpu")
ROWS = np.arange(1)
LOGITS_M1C = np.log(np.array([[[0.8, 0.2]], [[0.4, 0.6]]])).astype(np.float32)


def test_targets_by_hand() -> None:
    mean, members = Teacher(LOGITS_M1C, None, 1.0, "probs").targets(ROWS, CPU)
    assert mean[0].tolist() == pytest.approx([0.6, 0.4], abs=1e-6)
    assert members[:, 0, 0].tolist() == pytest.approx([0.8, 0.4], abs=1e-6)
    weighted, _ = Teacher(LOGITS_M1C, None, 1.0, "weighted:0.75,0.25").targets(ROWS, CPU)
    assert weighted[0, 0].item() == pytest.approx(0.7, abs=1e-6)
    geometric, _ = Teacher(LOGITS_M1C, None, 1.0, "logits").targets(ROWS, CPU)
    odds = (0.8 / 0.2 * 0.4 / 0.6) ** 0.5
    assert geometric[0, 0].item() == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_the_temperature_divides_every_member() -> None:
    _, members = Teacher(LOGITS_M1C, None, 2.0, "probs").targets(ROWS, CPU)
    odds = (0.8 / 0.2) ** 0.5
    assert members[0, 0, 0].item() == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_options_that_do_not_exist_get_nothing() -> None:
    logits_MNC = np.zeros((2, 1, 3), dtype=np.float32)
    teacher = Teacher(logits_MNC, np.array([[True, True, False]]), 1.0, "probs")
    mean, _ = teacher.targets(ROWS, CPU)
    assert mean[0].tolist() == [0.5, 0.5, 0.0]
    outputs = torch.zeros(1, 1, 4, requires_grad=True)
    loss = Distillation(teacher, teacher, CPU).loss(outputs, [ROWS])
    loss.sum().backward()
    assert torch.isfinite(loss).all() and outputs.grad is not None and outputs.grad[0, 0, 2] == 0


def test_the_mean_learns_by_cross_entropy_alone_and_the_precision_apart() -> None:
    teacher = Teacher(LOGITS_M1C, None, 1.0, "probs")
    outputs = torch.tensor([[[0.3, -0.2, 1.0]]], requires_grad=True)
    Distillation(teacher, teacher, CPU).loss(outputs, [ROWS]).sum().backward()
    assert outputs.grad is not None
    expected = torch.softmax(torch.tensor([0.3, -0.2]), -1) - torch.tensor([0.6, 0.4])
    torch.testing.assert_close(outputs.grad[0, 0, :2], expected, atol=1e-6, rtol=0)
    assert outputs.grad[0, 0, 2].abs() > 1e-3


def test_no_sample_pulls_the_precision_by_more_than_one() -> None:
    sure = np.array([[[20.0, -20.0], [0.0, 0.0]], [[-20.0, 20.0], [0.1, 0.0]]], dtype=np.float32)  # (2, 2, 2): they disagree on one
    teacher = Teacher(sure, None, 1.0, "probs")
    outputs = torch.tensor([[[2.0, 0.0, 12.0], [0.0, 0.0, 1.0]]], requires_grad=True)
    loss = Distillation(teacher, teacher, CPU).loss(outputs, [np.arange(2)]).sum()
    loss.backward()
    assert loss > 1e3 and outputs.grad is not None
    assert outputs.grad[0, 0, 2].item() == pytest.approx(0.5)  # 1 of the two samples' mean
    assert 0 < outputs.grad[0, 1, 2].abs() < 0.5


def test_the_precision_of_drawn_members_is_found_again() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(400, 5).double(), -1)
    drawn = Dirichlet(probs * np.exp(3.0)).sample((20,))
    logits_MNC = drawn.clamp_min(1e-6).log().numpy().astype(np.float32)
    assert best_constant(Teacher(logits_MNC, None, 1.0, "probs")) == pytest.approx(3.0, abs=0.2)
    tight = Dirichlet(probs * np.exp(6.0)).sample((20,)).clamp_min(1e-6).log().numpy().astype(np.float32)
    assert best_constant(Teacher(tight, None, 1.0, "probs")) == pytest.approx(6.0, abs=0.3)


def test_members_that_differ_more_where_they_are_unsure_give_a_falling_line() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(3 * torch.randn(400, 5).double(), -1)
    log_entropy = (torch.special.entr(probs).sum(-1) + 1e-3).log()
    drawn = Dirichlet(probs.clamp_min(1e-3) * (-1.5 * log_entropy + 3.0).exp()[:, None]).sample((20,))
    logits_MNC = drawn.clamp_min(1e-6).log().numpy().astype(np.float32)
    weight, bias = best_line(Teacher(logits_MNC, None, 1.0, "probs"))
    assert weight == pytest.approx(-1.5, abs=0.4) and bias == pytest.approx(3.0, abs=0.4)
    exists = np.ones((400, 5), dtype=bool)
    assert best_line(Teacher(logits_MNC, exists, 1.0, "probs"))[0] == 0.0  # options may differ, which the head does not know


def test_a_student_that_says_the_mean_has_no_divergence() -> None:
    generator = np.random.default_rng(0)
    teacher = Teacher(generator.normal(size=(3, 7, 4)).astype(np.float32), None, 1.3, "probs")
    mean_NC, _ = teacher.targets(np.arange(7), CPU)
    same = np.concatenate([mean_NC.log().numpy(), np.full((7, 1), 2.0)], 1)[None].astype(np.float32)
    found = Distillation(teacher, teacher, CPU).validation(same)
    assert found["validation_kl"] == pytest.approx(0, abs=1e-6) and found["validation_agreement"] == 1.0
    other = Distillation(teacher, teacher, CPU).validation(np.zeros_like(same))
    assert other["validation_kl"] > 1e-3


Saved = tuple[dict[str, Tensor], dict[str, Any]]


def run(lab: Any, loaded: Saved | None) -> tuple[dict[str, Tensor], list[Saved], list[Any]]:
    saved: list[Saved] = []

    def save(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        saved.append(({n: t.detach().clone() for n, t in tensors.items()}, json.loads(json.dumps(meta))))

    built = lab.build("bert", "sve", n_train=18)
    spec = MethodSpec(name="sve", members=3)
    teachers = [
        Teacher(predict_logits(built.ensemble, rows, 8)[0], rows.mask_NC, 1.0, "probs") for rows in (built.train, built.test)
    ]
    student = build_student(built.ensemble, built.backbone, spec, lab.store, 0, (-1.0, 1.0)).ensemble
    train = TrainSpec(epochs=2, batch_size=6, precision="float32", checkpoint_minutes=0.0)
    fit = Trainer(
        student, built.train, built.test, lambda m: predict_logits(student, built.test, 8, m)[0], train, 2e-2, 0, built.log,
        Checkpointer(save, loaded), objective=Distillation(*teachers, CPU),
    ).fit()  # fmt: skip
    return student.state(), saved, fit.best


def test_a_killed_distillation_goes_on_to_the_same_bits(lab: Any) -> None:
    state, saved, best = run(lab, None)
    assert [s[1]["done_steps"] for s in saved] == list(range(1, 7)) and best[0]["validation_kl"] > 0
    for k in (1, 2, 5):  # mid-epoch, end of the first epoch, after the last step
        again, _, found = run(lab, saved[k])
        assert all(torch.equal(again[n], t) for n, t in state.items()) and found == best
