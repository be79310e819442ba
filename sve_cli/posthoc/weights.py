"""Weights of the members in the ensemble's mean: a mixture of the members' distributions, fitted on held-back predictions.

Shapes: M members, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax

from sve_cli.errors import SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.statistics import log_softmax, require_usable, weighted_aggregate

PRIOR = 100.0  # imagined samples, explained by all members alike: they hold the weights near 1/M where there are few samples
MOST_STEPS, SMALLEST_STEP = 2000, 1e-9


@dataclass(frozen=True)
class Weights:
    """Fitted weights, positive and with sum one. NLL in nats over `n` validation samples: with equal weights, and with these.

    `prior`: the imagined samples that pull toward equal weights.
    """

    values: list[float]
    prior: float
    n: int
    nll_before: float
    nll_after: float

    @property
    def aggregate(self) -> str:
        """The way of averaging members that these weights are, as every function with an `aggregate` takes it."""
        return weighted_aggregate(self.values)


def fit_weights(predictions: Predictions, prior: float = PRIOR) -> Weights:
    """Maximise the likelihood of the labels under sum_m w_m p_m times a Dirichlet prior around equal weights.

    The objective is concave in w, and expectation-maximisation climbs it: every step gives member m the share of the labels'
    probability that comes from it, with `prior` samples more that are shared evenly. Samples without a label are left out.
    One member has the weight 1.

    Raises:
        SveError: logits that are not finite, or no labelled sample.
    """
    where = f"{predictions.dataset}:{predictions.split}"
    require_usable(predictions.logits_MNC, predictions.mask_NC, predictions.ids_N, where)
    known = predictions.subset(predictions.labels_N != UNKNOWN_LABEL)
    n, members = known.n_samples, known.n_members
    if not n:
        raise SveError(f"Weights of the members need labels, and '{where}' has none.", "Set evaluate.aggregate to probs.")
    rows = np.arange(n)
    log_label_MN = np.stack([log_softmax(logits_NC, known.mask_NC)[rows, known.labels_N] for logits_NC in known.logits_MNC])

    def nll(log_w_M: np.ndarray) -> float:
        return float(-np.mean(logsumexp(log_label_MN + log_w_M[:, None], axis=0)))

    equal_M = np.full(members, 1.0 / members)
    weight_M = equal_M
    for _ in range(MOST_STEPS if members > 1 else 0):
        share_M = softmax(log_label_MN + np.log(weight_M)[:, None], axis=0).sum(axis=1)
        next_M = (share_M + prior * equal_M) / (n + prior)
        step, weight_M = float(np.abs(next_M - weight_M).max()), next_M
        if step < SMALLEST_STEP:
            break
    return Weights(weight_M.tolist(), prior, n, nll(np.log(equal_M)), nll(np.log(weight_M)))
