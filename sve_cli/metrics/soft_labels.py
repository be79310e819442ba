"""Proper scores against a distribution of labels per sample, such as the shares of people who chose each class.

Peterson et al. 2019 (CIFAR-10H, arXiv 1908.07086): where people disagree, the best answer is how they disagree.
q is the distribution of labels, p the ensemble's distribution.
"""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted, weighted_mean


def _labels(view: Aggregated) -> np.ndarray:
    assert view.soft_labels_NC is not None  # scoring leaves these metrics out otherwise
    return view.soft_labels_NC


def _cross_entropy(view: Aggregated) -> np.ndarray:
    soft_NC = _labels(view)
    terms_NC = np.zeros_like(soft_NC)
    np.multiply(soft_NC, view.log_probs_NC, out=terms_NC, where=soft_NC > 0)  # 0 · ln 0 = 0
    return -terms_NC.sum(axis=1)


def _nll_soft(view: Aggregated, bins: int) -> Weighted:
    return weighted_mean(view, _cross_entropy(view))


def _kl_soft(view: Aggregated, bins: int) -> Weighted:
    return weighted_mean(view, _cross_entropy(view) - entr(_labels(view)).sum(axis=1))


def _brier_soft(view: Aggregated, bins: int) -> Weighted:
    return weighted_mean(view, np.square(view.probs_NC - _labels(view)).sum(axis=1))


nll_soft = Metric(
    "nll_soft",
    "lower",
    "Mean over samples of the cross-entropy - sum over classes of q ln p between the label distribution q and the ensemble's "
    "distribution p (nats); never below the mean entropy of q.",
    _nll_soft,
    needs_labels=False,
    needs_soft_labels=True,
)

kl_soft = Metric(
    "kl_soft",
    "lower",
    "Mean over samples of the Kullback-Leibler divergence of the ensemble's distribution from the label distribution: "
    "nll_soft minus the mean entropy of the labels (nats); 0 when they are equal.",
    _kl_soft,
    needs_labels=False,
    needs_soft_labels=True,
)

brier_soft = Metric(
    "brier_soft",
    "lower",
    "Sum over classes of the squared difference of the ensemble's probability and the label distribution, mean over samples "
    "(0 to 2).",
    _brier_soft,
    needs_labels=False,
    needs_soft_labels=True,
)
