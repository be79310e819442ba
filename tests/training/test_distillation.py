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
from sve_cli.training import Checkpointer, Trainer, distillation
from sve_cli.training.distillation import Distillation, Teacher, best_line, best_temperature, divergence

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


def test_the_mean_learns_by_cross_entropy_alone() -> None:
    teacher = Teacher(LOGITS_M1C, None, 1.0, "probs")
    outputs = torch.tensor([[[0.3, -0.2, 1.0]]], requires_grad=True)
    Distillation(teacher, teacher, CPU).loss(outputs, [ROWS]).sum().backward()
    assert outputs.grad is not None
    expected = torch.softmax(torch.tensor([0.3, -0.2]), -1) - torch.tensor([0.6, 0.4])
    torch.testing.assert_close(outputs.grad[0, 0, :2], expected, atol=1e-6, rtol=0)
    assert outputs.grad[0, 0, 2] == 0  # the log-precision is fitted afterwards


def test_the_temperature_that_brings_a_student_to_the_ensemble() -> None:
    logits_NC = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(np.stack([logits_NC.numpy()] * 2), None, 1.0, "probs")
    assert divergence(teacher, logits_NC) == pytest.approx(0, abs=1e-9)
    assert divergence(teacher, logits_NC * 3) > 1e-3
    assert best_temperature(teacher, logits_NC * 3) == pytest.approx(3, rel=1e-3)
    assert best_temperature(teacher, logits_NC * 0.1) == pytest.approx(0.1, rel=1e-3)
    assert best_temperature(Teacher(teacher.logits_MNC, None, 2.0, "probs"), logits_NC) == pytest.approx(2, rel=1e-3)
    options = np.ones((50, 4), dtype=bool)
    options[::2, 3] = False  # what does not exist has no say, whatever its logit is
    wild_NC = logits_NC.clone()
    wild_NC[::2, 3] = 100.0
    assert best_temperature(Teacher(teacher.logits_MNC, options, 1.0, "probs"), wild_NC * 3) == pytest.approx(3, rel=1e-3)


def drawn_members(probs_NC: Tensor, log_precision_N: Tensor) -> np.ndarray:
    """Twenty members as logits, drawn from the Dirichlet that the student is to find again."""
    drawn = Dirichlet(probs_NC.clamp_min(1e-3) * log_precision_N.exp()[:, None]).sample((20,))
    return drawn.clamp_min(1e-6).log().numpy().astype(np.float32)


@pytest.mark.parametrize(("precision", "within"), [(3.0, 0.2), (6.0, 0.3)])
def test_the_precision_of_drawn_members_is_found_again(precision: float, within: float) -> None:
    torch.manual_seed(0)
    probs_NC = torch.softmax(torch.randn(400, 5).double(), -1)
    logits_MNC = drawn_members(probs_NC, torch.full((400,), precision).double())
    exists = np.ones((400, 5), dtype=bool)  # options may differ, which the head does not know: a constant
    weight, bias = best_line(Teacher(logits_MNC, exists, 1.0, "probs"), probs_NC.log())
    assert weight == 0 and bias == pytest.approx(precision, abs=within)


def test_members_that_differ_more_where_they_are_unsure_give_a_falling_line() -> None:
    torch.manual_seed(0)
    probs_NC = torch.softmax(3 * torch.randn(400, 5).double(), -1)
    log_entropy_N = (torch.special.entr(probs_NC).sum(-1) + 1e-3).log()
    logits_MNC = drawn_members(probs_NC, -1.5 * log_entropy_N + 3.0)
    teacher = Teacher(logits_MNC, None, 1.0, "probs")
    weight, bias = best_line(teacher, teacher.targets(np.arange(400), CPU)[0].log())
    assert weight == pytest.approx(-1.5, abs=0.4) and bias == pytest.approx(3.0, abs=0.4)


def test_rows_in_the_order_of_their_classes_give_the_line_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members agree on the first half of the rows and differ on the second, as on easy and hard classes of sorted data."""
    monkeypatch.setattr(distillation, "FIT_ROWS", 150)
    torch.manual_seed(0)
    probs_NC = torch.softmax(torch.randn(300, 5).double(), -1)
    log_precision_N = torch.where(torch.arange(300) < 150, 7.0, 2.0).double()
    logits_MNC, exists = drawn_members(probs_NC, log_precision_N), np.ones((300, 5), dtype=bool)
    teacher = Teacher(logits_MNC, exists, 1.0, "probs")
    found = best_line(teacher, probs_NC.log(), 3)
    assert found == best_line(teacher, probs_NC.log(), 3) != best_line(teacher, probs_NC.log(), 4)
    monkeypatch.setattr(distillation, "FIT_ROWS", 300)
    whole = best_line(teacher, probs_NC.log(), 3)
    assert whole == best_line(teacher, probs_NC.log(), 4)  # all rows: nothing is drawn
    assert found[1] == pytest.approx(whole[1], abs=0.3)


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
    student = build_student(built.ensemble, built.backbone, spec, lab.store, 0).ensemble
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
