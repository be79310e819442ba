"""Dirichlet distributions over class probabilities, as a network that puts out p and a log-precision a states them.

alpha_c = p_c exp(a): the mean is exactly p, and exp(a) says how little the members of an ensemble would differ (Malinin et al.
2020, Ensemble Distribution Distillation, arXiv 1905.00076). Everything is computed in float64; entropies are in nats. An option
that does not exist has probability 0 and takes no part.
Shapes: N samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-30  # the concentration of a class whose probability underflows; its logarithm stays finite


def concentrations(probs_NC: Tensor, log_precision_N: Tensor) -> Tensor:
    """alpha (N, C) = p exp(a), float64."""
    return probs_NC.double() * log_precision_N.double().exp().unsqueeze(-1)


def log_likelihood(alpha_NC: Tensor, observed_NC: Tensor, exists_NC: Tensor) -> Tensor:
    """ln Dir(observed | alpha) of each sample (N,), by its density over the options that exist.

    Args:
        observed_NC: probabilities above 0 where the option exists, each row summing to one.
    """
    alpha_NC = alpha_NC.clamp_min(LEAST)
    zero = torch.zeros((), dtype=alpha_NC.dtype, device=alpha_NC.device)
    total_N = torch.where(exists_NC, alpha_NC, zero).sum(-1)
    log_observed_NC = torch.where(exists_NC, observed_NC, torch.ones_like(zero)).log()
    terms_NC = (alpha_NC - 1) * log_observed_NC - torch.lgamma(alpha_NC)
    return torch.lgamma(total_N) + torch.where(exists_NC, terms_NC, zero).sum(-1)


def mean_entropy(alpha_NC: Tensor) -> Tensor:
    """Entropy (N,) of the mean class probabilities: total uncertainty."""
    probs_NC = alpha_NC / alpha_NC.sum(-1, keepdim=True)
    return torch.special.entr(probs_NC).sum(-1)


def expected_entropy(alpha_NC: Tensor) -> Tensor:
    """Mean entropy (N,) of class probabilities drawn from the Dirichlet: psi(A + 1) - sum_c alpha_c / A psi(alpha_c + 1)."""
    total_N = alpha_NC.sum(-1)
    probs_NC = alpha_NC / total_N.unsqueeze(-1)
    return torch.digamma(total_N + 1) - (probs_NC * torch.digamma(alpha_NC + 1)).sum(-1)


def mutual_information(alpha_NC: Tensor) -> Tensor:
    """Total minus expected entropy (N,), at least 0: epistemic uncertainty."""
    return (mean_entropy(alpha_NC) - expected_entropy(alpha_NC)).clamp_min(0)
