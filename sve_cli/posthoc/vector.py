"""Vector scaling (Guo et al. 2017, arXiv 1706.04599), for an ensemble.

The logits z of every member become w ∘ z + b, with one weight and one bias per class shared by the members, before the
members are averaged. Fitted by maximum a posteriori around the fitted temperature T: 2 C free numbers would overfit where a
class has few samples.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from sve_cli.errors import SveError
from sve_cli.posthoc.temperature import fit_temperature
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.statistics import member_weights

# Standard deviations of the prior: of T · w around 1, and of b around 0 (in nats). Chosen by the NLL of held-out halves of
# validation splits and on recorded outputs of five CIFAR networks, with 2 to 500 samples a class. Without a prior, 10 samples
# a class gave 2 to 9 times the NLL of the temperature; with 500, it makes no difference.
WEIGHT_SCALE, BIAS_SCALE = 0.1, 0.25
MAX_STEPS = 500

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Vector:
    """Fitted weights and biases, C each: member logits become weight ∘ logits + bias.

    `temperature` is where the fit started and what the prior holds to. NLL in nats over `n` validation samples.
    """

    weight: list[float]
    bias: list[float]
    temperature: float
    n: int
    nll_before: float
    nll_after: float

    def apply(self, predictions: Predictions) -> Predictions:
        """The same predictions with every member's logits scaled and shifted.

        Raises:
            SveError: another number of classes than the fit's.
        """
        if predictions.n_classes != len(self.weight):
            raise SveError(
                f"Vector scaling was fitted on {len(self.weight)} classes, these predictions have {predictions.n_classes}."
            )
        scaled = predictions.logits_MNC * np.array(self.weight) + np.array(self.bias)
        return replace(predictions, logits_MNC=scaled.astype(predictions.logits_MNC.dtype))


def options_vary(predictions: Predictions) -> bool:
    """Whether samples have different options: an option then is no class with a weight of its own."""
    mask_NC = predictions.mask_NC
    return mask_NC is not None and bool((mask_NC != mask_NC[:1]).any())


def fit_vector(predictions: Predictions, aggregate: str) -> Vector:
    """Minimise the ensemble's validation NLL over w and b, by L-BFGS from w = 1/T, b = 0.

    A Gaussian prior holds T · w near 1 and b near 0; its weight against the mean NLL falls as 1/n, so that it decides for
    classes of few samples only. Samples without a label are left out. The NLL never rises above that at T.

    Raises:
        SveError: options that vary between samples, logits that are not finite, no labelled sample, or an unknown aggregate.
    """
    if options_vary(predictions):
        raise SveError("Vector scaling needs the same classes for all samples, and the options vary.", "Use the temperature.")
    start = fit_temperature(predictions, aggregate)
    known = predictions.subset(predictions.labels_N != UNKNOWN_LABEL)
    inverse, n_classes = 1.0 / start.value, predictions.n_classes
    nll = nll_and_gradient(known, aggregate)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:  # theta = (T · w, b), both of the order of one
        value, gradient = nll(np.concatenate([theta[:n_classes] * inverse, theta[n_classes:]]))
        gap = (theta - centre) / scale
        gradient = gradient * np.repeat([inverse, 1.0], n_classes) + gap / scale / known.n_samples
        return value + 0.5 * float(gap @ gap) / known.n_samples, gradient

    centre = np.repeat([1.0, 0.0], n_classes)
    scale = np.repeat([WEIGHT_SCALE, BIAS_SCALE], n_classes)
    found = minimize(objective, centre, jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS})
    theta = found.x if found.fun < objective(centre)[0] else centre
    weight, bias = theta[:n_classes] * inverse, theta[n_classes:]
    after = nll(np.concatenate([weight, bias]))[0]
    return Vector(weight.tolist(), bias.tolist(), start.value, known.n_samples, start.nll_before, after)


def nll_and_gradient(predictions: Predictions, aggregate: str) -> Objective:
    """(w, b) of length 2 C -> mean NLL of the ensemble and its gradient; every sample has a label.

    With r_m the share of member m in the probability of the label, the gradient with respect to a member's scaled logits is
    r_m (p_m - onehot). Mean logits are one member: w and b commute with the mean.
    """
    logits_MNC = predictions.logits_MNC.astype(np.float64)
    if aggregate == "logits":
        logits_MNC = logits_MNC.mean(axis=0, keepdims=True)
    exists_NC = np.ones(logits_MNC.shape[1:], dtype=bool) if predictions.mask_NC is None else predictions.mask_NC
    logits_MNC = np.where(exists_NC, logits_MNC, 0.0)  # what does not exist may hold anything
    members, n, n_classes = logits_MNC.shape
    weights_M = member_weights(aggregate, members)
    log_weight_M1 = np.log(np.full(members, 1.0 / members) if weights_M is None else weights_M)[:, None]
    rows, labels_N = np.arange(n), predictions.labels_N

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_MNC = np.where(exists_NC, logits_MNC * theta[:n_classes] + theta[n_classes:], -np.inf)
        shifted_MNC = scaled_MNC - scaled_MNC.max(axis=2, keepdims=True)
        log_p_MNC = shifted_MNC - np.log(np.exp(shifted_MNC).sum(axis=2, keepdims=True))
        log_label_MN = log_p_MNC[:, rows, labels_N] + log_weight_M1
        share_MN = softmax(log_label_MN, axis=0)
        top_N = log_label_MN.max(axis=0)
        value = -(top_N + np.log(np.exp(log_label_MN - top_N).sum(axis=0))).mean()
        error_MNC = np.exp(log_p_MNC)
        error_MNC[:, rows, labels_N] -= 1.0
        error_MNC *= share_MN[:, :, None] / n
        return float(value), np.concatenate([(error_MNC * logits_MNC).sum(axis=(0, 1)), error_MNC.sum(axis=(0, 1))])

    return objective
