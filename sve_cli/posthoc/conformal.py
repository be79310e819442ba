"""Split conformal sets: the classes that cannot be ruled out (Vovk et al. 2005; Angelopoulos and Bates 2021, arXiv 2107.07511).

Shapes: N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from sve_cli.errors import SveError
from sve_cli.posthoc.thresholds import SAME_SOURCE, conformal_quantile, quantile_rank


@dataclass(frozen=True)
class Conformal:
    """The set of a sample holds the classes whose score is at most `threshold`; None: too few samples, so every class.

    Attributes:
        kind: "lac": score 1 - p (Sadinle et al. 2019); "aps": probability of all classes that are at least as probable (Romano
            et al. 2020, without randomisation).
        alpha: share of samples whose set may miss the right class.
    """

    kind: str
    threshold: float | None
    alpha: float
    n: int
    guarantee: str
    assumption: str

    def sets(self, probs_NC: np.ndarray, exists_NC: np.ndarray) -> np.ndarray:
        """Which classes are in the set of each sample -> bool (N, C); never an option that does not exist."""
        if self.threshold is None:
            return exists_NC.copy()
        return exists_NC & (class_scores(probs_NC, self.kind) <= self.threshold)


def class_scores(probs_NC: np.ndarray, kind: str) -> np.ndarray:
    """Score of every class (N, C), higher = fits less.

    Raises:
        SveError: neither "lac" nor "aps".
    """
    if kind == "lac":
        return 1.0 - probs_NC
    if kind != "aps":
        raise SveError(f"Unknown kind of conformal sets '{kind}'.", "Known: lac, aps.")
    order_NC = np.argsort(-probs_NC, axis=1, kind="stable")
    totals_NC = np.cumsum(np.take_along_axis(probs_NC, order_NC, axis=1), axis=1)
    scores_NC = np.empty_like(totals_NC)
    np.put_along_axis(scores_NC, order_NC, totals_NC, axis=1)
    return scores_NC


def fit_conformal(probs_NC: np.ndarray, labels_N: np.ndarray, kind: str, alpha: float) -> Conformal:
    """The quantile of the labels' scores that makes the sets of new samples hold their class with probability >= 1 - alpha.

    Raises:
        SveError: no sample, or another kind.
    """
    n = len(labels_N)
    if not n:
        raise SveError("Conformal sets need labelled calibration samples.", "Use a larger validation split.")
    scores_N = class_scores(probs_NC, kind)[np.arange(n), labels_N]
    threshold = conformal_quantile(scores_N, alpha)
    if threshold is None:
        guarantee = f"Every set holds every class: {n} calibration samples are too few for less at alpha = {alpha:g}."
        return Conformal(kind, None, alpha, n, guarantee, SAME_SOURCE)
    rank = quantile_rank(n, alpha)
    low, high = (float(betaincinv(rank, n + 1 - rank, q)) for q in (0.025, 0.975))
    guarantee = (
        f"The set of a new input holds its class with probability at least {100 * (1 - alpha):.4g} %, on average over calibration "
        f"draws; with these {n:,} samples the long-run share lies between {100 * low:.0f} and {100 * high:.0f} % for 95 % of draws."
    )
    return Conformal(kind, threshold, alpha, n, guarantee, f"{SAME_SOURCE} It is an average over inputs, not one for each class.")
