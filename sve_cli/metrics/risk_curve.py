"""The risk-coverage curve as points (El-Yaniv and Wiener, JMLR 11, 2010): what a figure needs."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.report import RiskCurve
from sve_cli.statistics import tie_groups, wilson_interval

POINTS = 100


def risk_curve(view: Aggregated, confidence: float = 0.95, points: int = POINTS) -> RiskCurve | None:
    """The error rate of the most confident share of the samples, at `points` shares or one a sample; None without labels.

    Errors among equal confidences are spread evenly, as in `risk_at_coverage`; here whole samples are kept.
    """
    labelled = view.labelled()
    n = labelled.n
    if not n:
        return None
    group_N, n_groups = tie_groups(-labelled.confidence_N)
    error_N = 1.0 - labelled.correct_N
    mass_G = np.concatenate([[0.0], np.cumsum(np.bincount(group_N, minlength=n_groups))])
    errors_G = np.concatenate([[0.0], np.cumsum(np.bincount(group_N, error_N, minlength=n_groups))])
    steps = min(points, n)
    kept_P = -(np.arange(1, steps + 1) * -n // steps)  # rounded up
    wrong_P = np.interp(kept_P, mass_G, errors_G)  # straight between the groups: ties are spread evenly
    right = n - errors_G[-1]
    bands = [wilson_interval(float(wrong), int(kept), confidence) for wrong, kept in zip(wrong_P, kept_P, strict=True)]
    return RiskCurve(
        coverage=(kept_P / n).tolist(),
        risk=(wrong_P / kept_P).tolist(),
        low=[low for low, _ in bands],
        high=[high for _, high in bands],
        oracle=(np.maximum(kept_P - right, 0.0) / kept_P).tolist(),
        random=float(errors_G[-1] / n),
    )
