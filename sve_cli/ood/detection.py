"""How well a score (higher = more out-of-distribution) tells OOD samples from in-distribution (ID) ones.

Ties are never broken: samples with equal scores are flagged together. Both sides need at least one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sve_cli.report import Direction
from sve_cli.statistics import grouped_sums, tie_groups

RATE_PERCENT = 95
ROC_POINTS = 200


@dataclass(frozen=True)
class Detection:
    """One number about the separation of two sets: its direction, definition, and `compute(id scores, OOD scores)`."""

    direction: Direction
    definition: str
    compute: Callable[[np.ndarray, np.ndarray], float]


def auroc_ood(id_N: np.ndarray, ood_N: np.ndarray) -> float:
    """P(OOD score > ID score) + half P(equal)."""
    return float(weighted_auroc(id_N, ood_N)(np.ones((len(id_N), 1)), np.ones((len(ood_N), 1)))[0])


def weighted_auroc(id_N: np.ndarray, ood_N: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """AUROC as a function of the sample weights of both sides (N_id, R), (N_ood, R) -> (R,): the bootstrap's form."""
    group_N, n_groups = tie_groups(np.concatenate([id_N, ood_N]))

    def weighted(id_weights_NR: np.ndarray, ood_weights_NR: np.ndarray) -> np.ndarray:
        id_GR = grouped_sums(id_weights_NR, group_N[: len(id_N)], n_groups)
        ood_GR = grouped_sums(ood_weights_NR, group_N[len(id_N) :], n_groups)
        below_GR = np.cumsum(id_GR, axis=0) - 0.5 * id_GR
        return np.asarray((ood_GR * below_GR).sum(axis=0) / (id_GR.sum(axis=0) * ood_GR.sum(axis=0)))

    return weighted


def roc_points(id_N: np.ndarray, ood_N: np.ndarray, most: int = ROC_POINTS) -> dict[str, list[float]]:
    """Points of the ROC curve from (0, 0) to (1, 1): share of ID and of OOD flagged at falling thresholds, thinned to about `most`.

    Thinning keeps points that are evenly spread along the curve (by the sum of both shares).
    """
    group_N, n_groups = tie_groups(-np.concatenate([id_N, ood_N]))
    sides = [np.bincount(group_N[: len(id_N)], minlength=n_groups), np.bincount(group_N[len(id_N) :], minlength=n_groups)]
    flagged_G, caught_G = (np.concatenate([[0.0], np.cumsum(side) / side.sum()]) for side in sides)
    wanted = np.searchsorted(flagged_G + caught_G, np.linspace(0.0, 2.0, most))
    kept = np.unique(np.concatenate([[0], np.minimum(wanted, n_groups), [n_groups]]))
    return {"roc_id": flagged_G[kept].tolist(), "roc_ood": caught_G[kept].tolist()}


def aupr_ood(id_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Step-wise average precision, OOD positive, highest scores first."""
    return _average_precision(ood_N, id_N)


def aupr_id(id_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Step-wise average precision, ID positive, lowest scores first."""
    return _average_precision(-id_N, -ood_N)


def fpr95_ood_positive(id_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Share of ID flagged at the highest threshold that flags (score >= threshold) at least 95 % of OOD."""
    return _false_rate(ood_N, id_N)


def fpr95_id_positive(id_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Share of OOD accepted at the lowest threshold that accepts (score <= threshold) at least 95 % of ID."""
    return _false_rate(-id_N, -ood_N)


def _average_precision(positive_N: np.ndarray, negative_N: np.ndarray) -> float:
    """Sum over distinct thresholds of (recall step) x precision."""
    group_N, n_groups = tie_groups(-np.concatenate([positive_N, negative_N]))
    hits_G = np.bincount(group_N[: len(positive_N)], minlength=n_groups)
    flagged_G = np.cumsum(np.bincount(group_N, minlength=n_groups))
    return float((hits_G / len(positive_N) * (np.cumsum(hits_G) / flagged_G)).sum())


def _false_rate(positive_N: np.ndarray, negative_N: np.ndarray) -> float:
    needed = -(-RATE_PERCENT * len(positive_N) // 100)  # ceil in integers: 0.95 n may round up past a whole number
    threshold = np.sort(positive_N)[::-1][needed - 1]
    return float((negative_N >= threshold).mean())


DETECTION: dict[str, Detection] = {
    "auroc_ood": Detection("higher", "P(OOD score > ID score), ties count half; OOD is positive.", auroc_ood),
    "aupr_ood": Detection("higher", "Step-wise average precision, OOD is positive; depends on the set sizes.", aupr_ood),
    "aupr_id": Detection("higher", "Step-wise average precision, ID is positive; depends on the set sizes.", aupr_id),
    "fpr95_ood_positive": Detection(
        "lower", "Share of ID samples flagged when at least 95 % of OOD is caught (ties included).", fpr95_ood_positive
    ),
    "fpr95_id_positive": Detection(
        "lower", "Share of OOD samples accepted when at least 95 % of ID is kept (ties included).", fpr95_id_positive
    ),
}
