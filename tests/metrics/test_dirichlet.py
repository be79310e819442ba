"""Dirichlet formulas by hand and against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Dirichlet

from sve_cli.metrics.dirichlet import concentrations, expected_entropy, log_likelihood, mean_entropy, mutual_information

DRAWN = torch.distributions.Gamma(torch.tensor(0.7, dtype=torch.float64), 0.3)


def some(n: int = 6, classes: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return DRAWN.sample((n, classes)) + 1e-3


def test_log_likelihood_by_hand() -> None:
    everything = torch.ones(2, 2, dtype=torch.bool)
    alpha = torch.tensor([[1.0, 1.0], [2.0, 1.0]], dtype=torch.float64)  # the uniform density, and 2 p
    observed = torch.tensor([[0.3, 0.7], [0.8, 0.2]], dtype=torch.float64)
    found = log_likelihood(alpha, observed, everything)
    assert found.tolist() == pytest.approx([0.0, math.log(1.6)], abs=1e-12)


def test_log_likelihood_is_that_of_torch() -> None:
    alpha = some()
    observed = Dirichlet(torch.ones(4, dtype=torch.float64)).sample((6,))
    found = log_likelihood(alpha, observed, torch.ones(6, 4, dtype=torch.bool))
    torch.testing.assert_close(found, Dirichlet(alpha).log_prob(observed), atol=1e-10, rtol=1e-10)


def test_options_that_do_not_exist_take_no_part() -> None:
    alpha, observed = some(classes=3), Dirichlet(torch.ones(3, dtype=torch.float64)).sample((6,))
    wider = torch.cat([alpha, torch.zeros(6, 1, dtype=torch.float64)], 1)
    seen = torch.cat([observed, torch.zeros(6, 1, dtype=torch.float64)], 1)
    exists = torch.tensor([[True, True, True, False]]).expand(6, 4)
    torch.testing.assert_close(log_likelihood(wider, seen, exists), Dirichlet(alpha).log_prob(observed))
    torch.testing.assert_close(mutual_information(wider), mutual_information(alpha))


def test_uncertainties_by_hand() -> None:
    alpha = torch.ones(1, 2, dtype=torch.float64)  # p uniform on [0, 1]: mean entropy 2 * integral of -p ln p = 1/2
    assert mean_entropy(alpha).item() == pytest.approx(math.log(2))
    assert expected_entropy(alpha).item() == pytest.approx(0.5)
    assert mutual_information(alpha).item() == pytest.approx(math.log(2) - 0.5)


def test_uncertainties_are_those_of_drawn_probabilities() -> None:
    alpha = some()
    drawn = Dirichlet(alpha).sample((200_000,))
    torch.testing.assert_close(mean_entropy(alpha), Categorical(probs=alpha).entropy())
    torch.testing.assert_close(expected_entropy(alpha), torch.special.entr(drawn).sum(-1).mean(0), atol=3e-3, rtol=0)


def test_the_precision_moves_from_all_to_no_mutual_information() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1]]).expand(3, 3)
    alpha = concentrations(probs, torch.tensor([-20.0, 1.0, 30.0]))
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    none, some_, everything = mutual_information(alpha).flip(0).tolist()
    assert none == pytest.approx(0, abs=1e-9) and none < some_ < everything
    assert everything == pytest.approx(entropy, abs=1e-6)
    torch.testing.assert_close(alpha / alpha.sum(-1, keepdim=True), probs.double())  # the mean is p, whatever the precision


def test_gradients_are_finite_where_a_probability_underflows() -> None:
    log_precision = torch.tensor([2.0], requires_grad=True)
    alpha = concentrations(torch.softmax(torch.tensor([[900.0, 0.0, -900.0]], dtype=torch.float64), -1), log_precision)
    observed = torch.tensor([[0.9998, 1e-4, 1e-4]], dtype=torch.float64)
    value = log_likelihood(alpha, observed, torch.ones(1, 3, dtype=torch.bool)).sum()
    value.backward()
    assert torch.isfinite(value) and log_precision.grad is not None and torch.isfinite(log_precision.grad).all()
