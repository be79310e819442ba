"""The loss of a network that takes over an ensemble's mean and its spread (Malinin et al. 2020, arXiv 1905.00076).

The student puts out C logits z and a log-precision a. Its distribution over class probabilities is Dir(alpha) with
alpha = softmax(z) exp(a). z learns by cross-entropy to the teacher's mean probability. a learns by the Dirichlet negative
log-likelihood of the members' probabilities, with softmax(z) held fixed in it, per class, so that many classes do not outweigh the
mean. The members' probabilities are smoothed away from 0, where the density has no bound: (1 - g) p + g / K over the K options
that exist, g = 1e-4 as published; it also bounds the precision, where all members agree. The likelihood falls with exp(a) where
a student is surer than the members are; no sample's pull on a is therefore larger than 1, or a few such samples would fill the
gradient that is clipped as a whole.
Shapes: M members of the teacher, N samples, B batch, C classes; the student's outputs are C + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from sve_cli.methods.distilled import log_entropy
from sve_cli.metrics.dirichlet import concentrations, log_likelihood
from sve_cli.statistics import member_weights
from sve_cli.tasks.common import masked_logits

SMOOTHING = 1e-4
START_ROWS = 512  # rows that the constant log-precision at the start is fitted on
LOWEST, HIGHEST = -5.0, 20.0  # of that constant
STEEPEST = -5.0  # of the log-precision by log entropy


@dataclass(frozen=True)
class Teacher:
    """What the members say to the rows of a set.

    Attributes:
        logits_MNC: their logits.
        mask_NC: options that exist; None: all.
        temperature: every logit is divided by it.
        aggregate: how members are averaged ("probs", "logits", "weighted:…").
    """

    logits_MNC: np.ndarray
    mask_NC: np.ndarray | None
    temperature: float
    aggregate: str

    def exists(self, rows_B: np.ndarray, device: torch.device) -> Tensor:
        """Which options exist (B, C)."""
        if self.mask_NC is None:
            return torch.ones(len(rows_B), self.logits_MNC.shape[2], dtype=torch.bool, device=device)
        return torch.from_numpy(self.mask_NC[rows_B]).to(device)

    def weights(self, device: torch.device) -> Tensor:
        """The members' weights (M,), summing to one."""
        m = len(self.logits_MNC)
        fitted = member_weights(self.aggregate, m)
        return torch.from_numpy(np.full(m, 1 / m) if fitted is None else fitted / fitted.sum()).to(device)

    def targets(self, rows_B: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """The ensemble's mean probability (B, C), and every member's (M, B, C), float64."""
        logits_MBC = torch.from_numpy(self.logits_MNC[:, rows_B]).to(device).double() / self.temperature
        exists_BC = self.exists(rows_B, device)
        members_MBC = torch.softmax(masked_logits(logits_MBC, exists_BC), -1)
        if self.aggregate == "logits":
            return torch.softmax(masked_logits(logits_MBC.mean(0), exists_BC), -1), members_MBC
        return (self.weights(device)[:, None, None] * members_MBC).sum(0), members_MBC


class Distillation:
    """The objective; epochs are selected by the KL divergence from the teacher to the student on the validation rows."""

    selects = "validation_kl"

    def __init__(self, train: Teacher, validation: Teacher, device: torch.device) -> None:
        self.train, self.rows, self.device = train, validation, device

    def loss(self, logits_MBC: Tensor, part: list[np.ndarray]) -> Tensor:
        """The student's mean loss (1,)."""
        cross_B, dirichlet_B, _ = self._terms(self.train, logits_MBC[0], part[0])
        if dirichlet_B.requires_grad:
            (gradient_MBC,) = torch.autograd.grad(dirichlet_B.sum(), logits_MBC, retain_graph=True)
            pulled_B = gradient_MBC[0, :, -1].clamp(-1, 1) * logits_MBC[0, :, -1]
            dirichlet_B = dirichlet_B.detach() + pulled_B - pulled_B.detach()  # its value, with the limited gradient
        return (cross_B + dirichlet_B).mean().float().unsqueeze(0)

    def validation(self, logits_MNC: np.ndarray) -> dict[str, Any]:
        """KL to the teacher in nats, the Dirichlet's NLL per class, and the share of equal predictions."""
        rows_N = np.arange(logits_MNC.shape[1])
        outputs_NC = torch.from_numpy(logits_MNC[0]).to(self.device)
        cross_N, dirichlet_N, mean_NC = self._terms(self.rows, outputs_NC, rows_N)
        entropy_N = torch.special.entr(mean_NC).sum(-1)
        votes_N = masked_logits(outputs_NC[:, :-1], self.rows.exists(rows_N, self.device)).argmax(-1)
        return {
            "validation_kl": float((cross_N - entropy_N).mean()),
            "validation_dirichlet_nll": float(dirichlet_N.mean()),
            "validation_agreement": float((votes_N == mean_NC.argmax(-1)).double().mean()),
        }

    def _terms(self, teacher: Teacher, outputs_BC: Tensor, rows_B: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy to the mean (B,), Dirichlet NLL per class (B,), and the mean (B, C)."""
        exists_BC = teacher.exists(rows_B, self.device)
        mean_BC, members_MBC = teacher.targets(rows_B, self.device)
        log_probs_BC = torch.log_softmax(masked_logits(outputs_BC[:, :-1].double(), exists_BC), -1)
        finite_BC = torch.where(exists_BC, log_probs_BC, torch.zeros_like(log_probs_BC))
        cross_B = -(mean_BC * finite_BC).sum(-1)
        alpha_BC = concentrations(log_probs_BC.detach().exp(), outputs_BC[:, -1])
        return cross_B, _dirichlet_nll(alpha_BC, members_MBC, exists_BC, teacher.weights(self.device)), mean_BC


def _dirichlet_nll(alpha_BC: Tensor, members_MBC: Tensor, exists_BC: Tensor, weights_M: Tensor) -> Tensor:
    """Mean negative log-likelihood of the smoothed members, divided by the number of options (B,)."""
    options_B = exists_BC.sum(-1)
    smoothed_MBC = (1 - SMOOTHING) * members_MBC + SMOOTHING / options_B[:, None]
    likelihood_MB = torch.stack([log_likelihood(alpha_BC, smoothed_BC, exists_BC) for smoothed_BC in smoothed_MBC])
    return -(weights_M[:, None] * likelihood_MB).sum(0) / options_B


def best_line(teacher: Teacher) -> tuple[float, float]:
    """(weight, bias) of the log-precision on log(entropy + 1e-3) that suits the first rows best: where the student starts.

    With the teacher's own mean. Where options differ between rows the weight is 0: the head does not know which exist.
    """
    constant = best_constant(teacher)
    if teacher.mask_NC is not None:
        return 0.0, constant
    device = torch.device("cpu")
    rows_B = np.arange(min(START_ROWS, teacher.logits_MNC.shape[1]))
    mean_BC, members_MBC = teacher.targets(rows_B, device)
    exists_BC, weights_M = teacher.exists(rows_B, device), teacher.weights(device)
    log_entropy_B = log_entropy(mean_BC)

    def loss(line: np.ndarray) -> float:
        alpha_BC = concentrations(mean_BC, float(line[0]) * log_entropy_B + float(line[1]))
        return float(_dirichlet_nll(alpha_BC, members_MBC, exists_BC, weights_M).mean())

    bounds = [(STEEPEST, 0.0), (LOWEST, HIGHEST)]  # more entropy, less precision
    found = minimize(loss, [-1.0, constant], method="Nelder-Mead", bounds=bounds, options={"maxiter": 200}).x
    return float(found[0]), float(found[1])


def best_constant(teacher: Teacher) -> float:
    """The one log-precision that suits the first rows best, with the teacher's own mean."""
    device = torch.device("cpu")
    rows_B = np.arange(min(START_ROWS, teacher.logits_MNC.shape[1]))
    mean_BC, members_MBC = teacher.targets(rows_B, device)
    exists_BC, weights_M = teacher.exists(rows_B, device), teacher.weights(device)

    def loss(log_precision: float) -> float:
        alpha_BC = concentrations(mean_BC, torch.full((len(rows_B),), float(log_precision)))
        return float(_dirichlet_nll(alpha_BC, members_MBC, exists_BC, weights_M).mean())

    return float(minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-3}).x)
