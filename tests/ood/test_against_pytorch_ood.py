"""Against pytorch-ood, on random and on edge input. Where they differ, the difference is tested by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, precision_recall_curve

from sve_cli.diversity import NEIGHBOURS
from sve_cli.ood.detection import DETECTION
from sve_cli.ood.mahalanobis import fit_gaussians
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.predictions import Predictions
from sve_cli.registry import OOD_SCORES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    detector = pytest.importorskip("pytorch_ood.detector")
    metrics = pytest.importorskip("pytorch_ood.metrics.functional")

SAMPLES = {
    "random": (200, 90, 8),
    "ties": (200, 90, 1),
    "one of each": (1, 1, 8),
    "twenty": (20, 20, 8),  # 95 % of 20 is 19 exactly
    "flat": (30, 20, -2),
}


def sides(name: str) -> tuple[np.ndarray, np.ndarray]:
    n_id, n_ood, decimals = SAMPLES[name]
    rng = np.random.default_rng(n_id)
    return rng.normal(size=n_id).round(decimals) + 0.0, (rng.normal(size=n_ood) + 0.8).round(decimals) + 0.0


def joined(id_N: np.ndarray, ood_N: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    labels = np.r_[np.zeros(len(id_N), np.int64), np.full(len(ood_N), -1)]
    return torch.from_numpy(np.r_[id_N, ood_N]), torch.from_numpy(labels)


def ours(key: str, id_N: np.ndarray, ood_N: np.ndarray) -> float:
    return DETECTION[key].compute(id_N, ood_N)


@pytest.mark.parametrize("name", list(SAMPLES))
def test_auroc_and_fpr95(name: str) -> None:
    id_N, ood_N = sides(name)
    scores, labels = joined(id_N, ood_N)
    assert ours("auroc_ood", id_N, ood_N) == pytest.approx(float(metrics.auroc(scores, labels)), abs=1e-12)
    assert ours("fpr95_ood_positive", id_N, ood_N) == pytest.approx(float(metrics.fpr_at_tpr(scores, labels)), abs=1e-12)
    # The other FPR95 is theirs with the sides and the sign changed; they have one only.
    swapped, other = joined(-ood_N, -id_N)
    assert ours("fpr95_id_positive", id_N, ood_N) == pytest.approx(float(metrics.fpr_at_tpr(swapped, other)), abs=1e-12)


@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize("positive", ["ood", "id"])
def test_their_aupr_is_the_trapezoid(name: str, positive: str) -> None:
    """Straight lines between points of the curve promise what no threshold reaches (Davis and Goadrich 2006)."""
    id_N, ood_N = sides(name)
    scores, labels = joined(id_N, ood_N)
    sign, truth = (1, labels.numpy() < 0) if positive == "ood" else (-1, labels.numpy() >= 0)
    precision, recall, _ = precision_recall_curve(truth, sign * scores.numpy())
    theirs = float(metrics.aupr(scores, labels, positive))
    assert theirs == pytest.approx(auc(recall, precision), abs=1e-12)
    steps = ours(f"aupr_{positive}", id_N, ood_N)
    assert steps == pytest.approx(-(np.diff(recall) * precision[:-1]).sum(), abs=1e-12)
    assert abs(theirs - steps) <= (np.abs(np.diff(recall)) * np.abs(np.diff(precision))).sum() / 2 + 1e-12


def test_flat_scores_are_flattered_by_the_trapezoid() -> None:
    """Scores that say nothing have an AUPR of the share of positives: 0.4 of 20 among 50, not 0.7."""
    scores, labels = joined(np.ones(30), np.ones(20))
    assert ours("aupr_ood", np.ones(30), np.ones(20)) == pytest.approx(0.4)
    assert float(metrics.aupr(scores, labels)) == pytest.approx(0.7)


def one_member(logits_NC: np.ndarray) -> Predictions:
    n, classes = logits_NC.shape
    return Predictions(logits_NC[None], np.full(n, -1), [str(i) for i in range(n)], [str(c) for c in range(classes)])


def of_ours(name: str, logits_NC: np.ndarray) -> np.ndarray:
    return np.asarray(OOD_SCORES.resolve(name)().score(one_member(logits_NC), "probs"))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_scores_of_one_network(scale: float) -> None:
    logits = scale * np.random.default_rng(0).normal(size=(50, 6))
    given = torch.from_numpy(logits)
    np.testing.assert_allclose(of_ours("max_probability", logits), 1.0 + detector.MaxSoftmax.score(given).numpy(), atol=1e-12)
    np.testing.assert_allclose(of_ours("energy", logits), detector.EnergyBased.score(given).numpy(), atol=1e-12)
    np.testing.assert_allclose(of_ours("max_logit", logits), detector.MaxLogit.score(given).numpy(), atol=1e-12)
    np.testing.assert_allclose(of_ours("entropy", logits), detector.Entropy.score(given).numpy(), atol=1e-6)


def test_their_entropy_is_clipped() -> None:
    """Probabilities below 1e-7 count as 1e-7 there: two sure samples, one of them surer, are the same."""
    logits = np.array([[40.0, 0.0, 0.0], [80.0, 0.0, 0.0]])
    theirs = detector.Entropy.score(torch.from_numpy(logits)).numpy()
    assert theirs[0] == pytest.approx(theirs[1], rel=1e-12) and theirs[0] > 1e-6
    ours_N = of_ours("entropy", logits)
    assert ours_N[0] == pytest.approx(2 * 41 * np.exp(-40), rel=1e-6) and ours_N[1] < ours_N[0]


def test_distances_in_feature_space() -> None:
    """Theirs is half the distance with the scatter, not the covariance: 2 K times it is ours, but for our shrinkage."""
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    known = rng.normal(size=(3000, 4)) * [1.0, 2.0, 0.5, 1.0] + 4.0 * labels[:, None]
    asked = rng.normal(size=(40, 4)) * 6.0
    fitted = detector.Mahalanobis(None).fit_features(torch.from_numpy(known).float(), torch.from_numpy(labels))
    theirs = 2 * len(known) * fitted.predict_features(torch.from_numpy(asked).float()).numpy()
    np.testing.assert_allclose(fit_gaussians(known, labels).distance(asked), theirs, rtol=0.02)

    nearest = detector.KNN(None, k=NEIGHBOURS).fit_features(torch.from_numpy(known), torch.from_numpy(labels))
    training = TrainingFeatures(known[None].astype(np.float32), labels, len(known))
    given = Predictions(np.zeros((1, 40, 2)), np.full(40, -1), [str(i) for i in range(40)], ["a", "b"], features_MNF=asked[None])
    found = OOD_SCORES.resolve("knn")(training).score(given)
    np.testing.assert_allclose(found, nearest.predict_features(torch.from_numpy(asked)).numpy(), atol=1e-5)
