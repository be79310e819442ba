"""Two thresholds with finite-sample guarantees: when to abstain, and when to call an input out of distribution.

Both are fitted on the calibration half of validation, which nothing else was fitted or selected on. Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from sve_cli.errors import SveError

SHARES = 20  # shares of inputs answered that are tried: 5 %, 10 %, … 100 %
SAME_SOURCE = "New inputs come from the same source as the calibration samples (exchangeable)."


@dataclass(frozen=True)
class Abstention:
    """Answer where the largest probability is at least `threshold`; None: no threshold could be shown to hold the target.

    Attributes:
        answered, errors: calibration samples that the threshold answers, and the wrong ones among them.
        bound: upper bound on the error rate among answered inputs, at `level` over draws of the calibration samples.
    """

    threshold: float | None
    target_risk: float
    level: float
    n: int
    answered: int
    errors: int
    bound: float
    guarantee: str
    assumption: str

    def answers(self, confidence_N: np.ndarray) -> np.ndarray:
        """Which samples (N,) are answered; all where there is no threshold."""
        return np.ones(len(confidence_N), dtype=bool) if self.threshold is None else confidence_N >= self.threshold


@dataclass(frozen=True)
class OodThreshold:
    """Out of distribution where the score exceeds `threshold`; None: too few samples, so nothing is.

    Attributes:
        score: name of the OOD score.
        keep: share of in-distribution inputs that it keeps.
    """

    score: str
    threshold: float | None
    keep: float
    n: int
    guarantee: str
    assumption: str

    def flags(self, scores_N: np.ndarray) -> np.ndarray:
        """Which samples (N,) are called out of distribution."""
        return np.zeros(len(scores_N), dtype=bool) if self.threshold is None else scores_N > self.threshold


def clopper_pearson_upper(errors: int, n: int, level: float) -> float:
    """Upper bound of a proportion that holds with probability `level` (Clopper and Pearson, Biometrika 1934)."""
    return 1.0 if errors >= n else float(betaincinv(errors + 1, n - errors, level))


def fit_abstention(confidence_N: np.ndarray, correct_N: np.ndarray, target_risk: float, level: float = 0.95) -> Abstention:
    """The threshold that answers the largest share of inputs with an error rate that can be shown to stay at the target.

    As in selective prediction with guaranteed risk (Geifman and El-Yaniv 2017, arXiv 1705.08500), the error rate among the
    answered is bounded by Clopper and Pearson. Their binary search is replaced by 20 shares fixed in advance, each bounded at
    1 - (1 - level) / 20, so that the bound holds whichever is chosen.

    Raises:
        SveError: no sample.
    """
    n = len(confidence_N)
    if not n:
        raise SveError("An abstention threshold needs labelled calibration samples.", "Use a larger validation split.")
    assumption = f"{SAME_SOURCE} It is an average over answered inputs, not a promise for each."
    descending_N = np.sort(confidence_N)[::-1]
    for j in range(SHARES, 0, -1):
        threshold = float(descending_N[max(-(-n * j // SHARES), 1) - 1])
        answered_N = confidence_N >= threshold
        answered = int(answered_N.sum())
        errors = answered - int(correct_N[answered_N].sum())
        bound = clopper_pearson_upper(errors, answered, 1.0 - (1.0 - level) / SHARES)
        if bound <= target_risk:
            guarantee = (
                f"With {_percent(level)} confidence over calibration draws, at most {_percent(target_risk)} of the answers are "
                f"wrong (Clopper-Pearson bounds at {SHARES} shares answered fixed in advance; {errors} errors among {answered:,})."
            )
            return Abstention(threshold, target_risk, level, n, answered, errors, bound, guarantee, assumption)
    errors = n - int(correct_N.sum())
    guarantee = (
        f"None: with {n:,} calibration samples and {errors:,} errors no share of the inputs can be shown to stay at "
        f"{_percent(target_risk)} errors, so every input is answered."
    )
    return Abstention(None, target_risk, level, n, n, errors, clopper_pearson_upper(errors, n, level), guarantee, assumption)


def fit_ood_threshold(scores_N: np.ndarray, score: str, keep: float) -> OodThreshold:
    """The ceil((N + 1) keep)-th smallest score of in-distribution samples: a new one exceeds it with probability <= 1 - keep.

    Raises:
        SveError: no sample.
    """
    n = len(scores_N)
    if not n:
        raise SveError("An out-of-distribution threshold needs calibration samples.", "Use a larger validation split.")
    threshold = conformal_quantile(scores_N, 1.0 - keep)
    name = score.replace("_", " ")
    if threshold is None:
        guarantee = f"None: {n} calibration samples are too few to keep {_percent(keep)} of them, so no input is flagged by {name}."
    else:
        guarantee = (
            f"A new in-distribution input is kept with probability at least {_percent(keep)}, on average over calibration draws "
            f"(split-conformal quantile of {n:,} samples). Nothing is promised about how many others are flagged."
        )
    return OodThreshold(score, threshold, keep, n, guarantee, SAME_SOURCE)


def conformal_quantile(scores_N: np.ndarray, alpha: float) -> float | None:
    """The ceil((N + 1)(1 - alpha))-th smallest score; None where that is past the last one."""
    rank = quantile_rank(len(scores_N), alpha)
    return None if rank > len(scores_N) else float(np.sort(scores_N)[rank - 1])


def quantile_rank(n: int, alpha: float) -> int:
    """ceil((n + 1)(1 - alpha)), safe against the rounding of 1 - alpha."""
    return int(np.ceil((n + 1) * (1.0 - alpha) - 1e-9))


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
