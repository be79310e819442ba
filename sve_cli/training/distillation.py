"""How a network takes over an ensemble's mean, and afterwards its confidence and its spread.

It learns by cross-entropy to the mean of the members' probabilities. What follows reads held-out rows and changes three numbers:
the temperature at which the student is nearest to the ensemble at its own, and the line of the log-precision a in
Dir(softmax(z) exp(a)), by the negative log-likelihood of the members' probabilities under it (Malinin et al. 2020,
arXiv 1905.00076). These are smoothed away from 0, where the density has no bound: (1 - g) p + g / K over the K options that
exist, g = 1e-4 as published; it also bounds the precision, where all members agree.
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
from sve_cli.statistics import member_weights, seeded
from sve_cli.tasks.common import masked_logits

SMOOTHING = 1e-4
FIT_ROWS = 2048  # rows that the log-precision is fitted on, at most; drawn where there are more
LOWEST, HIGHEST = -5.0, 20.0  # of its constant
STEEPEST = -5.0  # of the log-precision by log entropy
HOTTEST = 20.0  # temperature, and 1 / HOTTEST the coldest


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
        return _cross_entropy(self.train, logits_MBC[0, :, :-1], part[0]).mean().float().unsqueeze(0)

    def validation(self, logits_MNC: np.ndarray) -> dict[str, Any]:
        """KL to the teacher in nats, and the share of equal predictions."""
        rows_N = np.arange(logits_MNC.shape[1])
        logits_NC = torch.from_numpy(logits_MNC[0, :, :-1]).to(self.device)
        mean_NC = self.rows.targets(rows_N, self.device)[0]
        votes_N = masked_logits(logits_NC, self.rows.exists(rows_N, self.device)).argmax(-1)
        return {
            "validation_kl": divergence(self.rows, logits_NC),
            "validation_agreement": float((votes_N == mean_NC.argmax(-1)).double().mean()),
        }


def _cross_entropy(teacher: Teacher, logits_BC: Tensor, rows_B: np.ndarray) -> Tensor:
    """From the teacher's mean to the student (B,)."""
    exists_BC = teacher.exists(rows_B, logits_BC.device)
    mean_BC, _ = teacher.targets(rows_B, logits_BC.device)
    log_probs_BC = torch.log_softmax(masked_logits(logits_BC.double(), exists_BC), -1)
    return -(mean_BC * torch.where(exists_BC, log_probs_BC, torch.zeros_like(log_probs_BC))).sum(-1)


def divergence(teacher: Teacher, logits_NC: Tensor) -> float:
    """Mean KL divergence in nats from the teacher's mean to a student's class probabilities, over all rows."""
    rows_N = np.arange(len(logits_NC))
    entropy_N = torch.special.entr(teacher.targets(rows_N, logits_NC.device)[0]).sum(-1)
    return float((_cross_entropy(teacher, logits_NC, rows_N) - entropy_N).mean())


def best_temperature(teacher: Teacher, logits_NC: Tensor) -> float:
    """What a student's logits are divided by to be nearest to the teacher's mean; 1 where nothing is nearer than as they are."""

    def loss(log_t: float) -> float:
        return divergence(teacher, logits_NC / float(np.exp(log_t)))

    widest = float(np.log(HOTTEST))
    found = minimize_scalar(loss, bounds=(-widest, widest), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def _dirichlet_nll(alpha_BC: Tensor, members_MBC: Tensor, exists_BC: Tensor, weights_M: Tensor) -> Tensor:
    """Mean negative log-likelihood of the smoothed members, divided by the number of options (B,)."""
    options_B = exists_BC.sum(-1)
    smoothed_MBC = (1 - SMOOTHING) * members_MBC + SMOOTHING / options_B[:, None]
    likelihood_MB = torch.stack([log_likelihood(alpha_BC, smoothed_BC, exists_BC) for smoothed_BC in smoothed_MBC])
    return -(weights_M[:, None] * likelihood_MB).sum(0) / options_B


def best_line(teacher: Teacher, logits_NC: Tensor, seed: int = 0) -> tuple[float, float]:
    """(weight, bias) of the log-precision on log(entropy + 1e-3) of a student that suits the members best.

    Where options differ between rows the weight is 0: the head does not know which exist.

    Args:
        seed: of the draw of at most `FIT_ROWS` rows. The first ones would not do: data often come in the order of their classes.
    """
    n, device = len(logits_NC), torch.device("cpu")
    rows_B = np.arange(n)
    if n > FIT_ROWS:
        rows_B = np.sort(seeded(seed, "rows of the log-precision").choice(n, FIT_ROWS, replace=False))
    logits_BC = logits_NC[torch.from_numpy(rows_B)].cpu().double()
    exists_BC, weights_M = teacher.exists(rows_B, device), teacher.weights(device)
    members_MBC = teacher.targets(rows_B, device)[1]
    probs_BC = torch.softmax(masked_logits(logits_BC, exists_BC), -1)
    log_entropy_B = log_entropy(probs_BC)

    def loss(weight: float, bias: float) -> float:
        alpha_BC = concentrations(probs_BC, weight * log_entropy_B + bias)
        return float(_dirichlet_nll(alpha_BC, members_MBC, exists_BC, weights_M).mean())

    bounds = [(STEEPEST, 0.0), (LOWEST, HIGHEST)]  # more entropy, less precision
    constant = minimize_scalar(lambda bias: loss(0.0, bias), bounds=bounds[1], method="bounded", options={"xatol": 1e-3}).x
    if teacher.mask_NC is not None:
        return 0.0, float(constant)
    found = minimize(lambda x: loss(*x), [-1.0, constant], method="Nelder-Mead", bounds=bounds, options={"maxiter": 200}).x
    return float(found[0]), float(found[1])
