from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from sve_cli.ood.detection import DETECTION, auroc_ood, fpr95_id_positive, fpr95_ood_positive, weighted_auroc

# Pairs (OOD, ID): 3 beats 1, 2, 2 (3); 2 beats 1 and ties with two (1 + .5 + .5 = 2): 5 of 6.
ID, OOD = np.array([1.0, 2.0, 2.0]), np.array([3.0, 2.0])
HAND = {
    "auroc_ood": 5 / 6,
    # thresholds 3: recall 1/2 at precision 1; 2: recall 1 at precision 2/4
    "aupr_ood": 0.5 * 1 + 0.5 * 0.5,
    # from below, ID positive: 1: recall 1/3 at precision 1; 2: recall 1 at precision 3/4
    "aupr_id": 1 / 3 + 2 / 3 * 3 / 4,
    # 95 % of two OOD is both: threshold 2 flags two of three ID
    "fpr95_ood_positive": 2 / 3,
    # 95 % of three ID is all: threshold 2 accepts one of two OOD
    "fpr95_id_positive": 1 / 2,
}
PERFECT = {"auroc_ood": 1, "aupr_ood": 1, "aupr_id": 1, "fpr95_ood_positive": 0, "fpr95_id_positive": 0}
FLAT = {"auroc_ood": 0.5, "aupr_ood": 0.4, "aupr_id": 0.6, "fpr95_ood_positive": 1, "fpr95_id_positive": 1}


@pytest.mark.parametrize("name", list(DETECTION))
def test_by_hand(name: str) -> None:
    assert DETECTION[name].compute(ID, OOD) == pytest.approx(HAND[name])
    assert DETECTION[name].compute(np.array([0.0, 0.1]), np.array([0.2, 0.3, 0.4])) == PERFECT[name]
    assert DETECTION[name].compute(np.ones(3), np.ones(2)) == pytest.approx(FLAT[name])


def test_threshold_keeps_just_95_percent() -> None:
    # 100 OOD at 1 ... 100: the threshold is 6 (95 of them); ID at 5.5 is not flagged, at 6 it is
    ood = np.arange(1.0, 101.0)
    assert fpr95_ood_positive(np.array([5.5, 6.0]), ood) == 0.5
    # 100 ID at 1 ... 100: accepted up to 95
    assert fpr95_id_positive(ood, np.array([95.0, 95.5])) == 0.5
    # 20: 19 are enough (0.95 * 20 must not be rounded up)
    assert fpr95_ood_positive(np.array([1.5, 2.0]), np.arange(1.0, 21.0)) == 0.5


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize(("n_id", "n_ood"), [(200, 90), (1, 5), (7, 1)])
def test_against_sklearn(decimals: int, n_id: int, n_ood: int) -> None:
    rng = np.random.default_rng(n_id)
    id_N, ood_N = rng.normal(size=n_id).round(decimals), (rng.normal(size=n_ood) + 0.8).round(decimals)
    truth, scores = np.r_[np.zeros(n_id), np.ones(n_ood)], np.r_[id_N, ood_N]
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    fpr_id, tpr_id, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    expected = {
        "auroc_ood": roc_auc_score(truth, scores),
        "aupr_ood": average_precision_score(truth, scores),
        "aupr_id": average_precision_score(1 - truth, -scores),
        "fpr95_ood_positive": fpr[tpr >= 0.95 - 1e-12].min(),
        "fpr95_id_positive": fpr_id[tpr_id >= 0.95 - 1e-12].min(),
    }
    for name, value in expected.items():
        assert DETECTION[name].compute(id_N, ood_N) == pytest.approx(value), name


def test_weighted_auroc_equals_repetition() -> None:
    rng = np.random.default_rng(0)
    id_N, ood_N = rng.normal(size=30).round(1), rng.normal(size=20).round(1) + 0.5
    a, b = rng.integers(30, size=30), rng.integers(20, size=20)
    weights = [np.bincount(rows, minlength=n)[:, None].astype(float) for rows, n in ((a, 30), (b, 20))]
    assert weighted_auroc(id_N, ood_N)(*weights)[0] == pytest.approx(auroc_ood(id_N[a], ood_N[b]))
