"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599), for an ensemble.

The logits of every member are divided by one T before the members are averaged (not the mean afterwards).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sve_cli.errors import SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.statistics import member_weights, require_aggregate, require_usable

LOWEST, HIGHEST = 0.05, 20.0
GRID = 17  # the NLL of a mean of probabilities need not have one minimum in T: bracket the best on a grid, then refine


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature: member logits are divided by `value`. NLL in nats over `n` validation samples."""

    value: float
    n: int
    nll_before: float
    nll_after: float

    @property
    def at_bound(self) -> bool:
        """The search ended at an end of its range: T is not a minimum (every sample right, or logits without meaning)."""
        return self.value <= LOWEST * 1.001 or self.value >= HIGHEST / 1.001

    def apply(self, predictions: Predictions) -> Predictions:
        """The same predictions with every member's logits divided by T."""
        return replace(predictions, logits_MNC=(predictions.logits_MNC / self.value).astype(predictions.logits_MNC.dtype))


def fit_temperature(predictions: Predictions, aggregate: str) -> Temperature:
    """Minimise the ensemble's validation NLL over T in [0.05, 20], on ln T.

    Samples without a label are left out. T is 1 when no other T lowers the NLL.

    Raises:
        SveError: logits that are not finite, no labelled sample, or an unknown aggregate.
    """
    require_aggregate(aggregate)
    where = f"{predictions.dataset}:{predictions.split}"
    require_usable(predictions.logits_MNC, predictions.mask_NC, predictions.ids_N, where)
    known_N = predictions.labels_N != UNKNOWN_LABEL
    if not known_N.any():
        raise SveError(f"A temperature needs labels, and '{where}' has none.", "Set evaluate.temperature to false.")
    nll = _nll_of(predictions.subset(known_N), aggregate)
    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID)
    best = int(np.argmin([nll(float(t)) for t in grid]))
    bracket = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)]))
    found = minimize_scalar(nll, bounds=bracket, method="bounded", options={"xatol": 1e-5})
    before, log_t, after = nll(0.0), float(found.x), float(found.fun)
    if not after < before:
        log_t, after = 0.0, before
    return Temperature(float(np.exp(log_t)), int(known_N.sum()), before, after)


def _nll_of(predictions: Predictions, aggregate: str) -> Callable[[float], float]:
    """ln T -> NLL. Only ln p(label) is needed, so a step costs one logsumexp per member."""
    logits_MNC = predictions.logits_MNC.astype(np.float64)
    if predictions.mask_NC is not None:
        logits_MNC = np.where(predictions.mask_NC, logits_MNC, -np.inf)
    logits_MNC -= logits_MNC.max(axis=2, keepdims=True)
    if aggregate == "logits":
        logits_MNC = logits_MNC.mean(axis=0, keepdims=True)
    weights_M = member_weights(aggregate, len(logits_MNC))
    log_weight_M = np.full(len(logits_MNC), -np.log(len(logits_MNC))) if weights_M is None else np.log(weights_M)
    label_MN = logits_MNC[:, np.arange(predictions.n_samples), predictions.labels_N]

    def nll(log_t: float) -> float:
        inverse = float(np.exp(-log_t))
        # Shifted by the maximum, so that the sum holds no overflow (mean logits lie at or below 0 too).
        shift_MN = logits_MNC.max(axis=2) * inverse
        log_norm_MN = shift_MN + np.log(np.exp(logits_MNC * inverse - shift_MN[:, :, None]).sum(axis=2))
        log_p_N = logsumexp(label_MN * inverse - log_norm_MN + log_weight_M[:, None], axis=0)
        return float(-np.mean(log_p_N))

    return nll
