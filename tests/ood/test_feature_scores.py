from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from sve_cli.errors import SveError
from sve_cli.ood.build import build_scores, needs_features
from sve_cli.ood.detection import auroc_ood
from sve_cli.ood.joint import join
from sve_cli.ood.knn import Knn
from sve_cli.ood.mahalanobis import Mahalanobis, fit_gaussians, ledoit_wolf
from sve_cli.ood.training_features import MOST_ROWS, TrainingFeatures, rows_kept
from sve_cli.predictions import Predictions


def predictions(features_MNF: np.ndarray, dataset: str = "toy") -> Predictions:
    m, n, _ = features_MNF.shape
    ids = [f"{dataset}{i}" for i in range(n)]
    return Predictions(np.zeros((m, n, 2), np.float32), np.full(n, -1), ids, ["x", "y"], dataset, features_MNF=features_MNF)


def test_ledoit_wolf_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for n, width in ((400, 6), (15, 40)):
        x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width))
        x -= x.mean(axis=0)
        np.testing.assert_allclose(ledoit_wolf(x), LedoitWolf(assume_centered=True).fit(x).covariance_, rtol=1e-8, atol=1e-10)


def test_mahalanobis_by_hand() -> None:
    """Two classes at (0, 0) and (10, 0) with residuals ±1 in both axes: the covariance is the identity, so distances are plain."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float32)
    both = np.concatenate([corners, corners + np.array([10, 0])])
    training = TrainingFeatures(both[None].astype(np.float32), np.repeat([0, 1], 4), 8)
    found = Mahalanobis(training).score(predictions(np.array([[[0, 0], [3, 4], [8, 0], [10, 5]]], dtype=np.float32)))
    np.testing.assert_allclose(found, [0, 25, 4, 25], atol=1e-6)


def test_mahalanobis_uses_the_common_covariance() -> None:
    """A step along the axis that varies 10 times as much counts 10 times less, squared 100."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 2)) * [10.0, 1.0]
    found = fit_gaussians(features, np.zeros(5000)).distance(features.mean(axis=0) + np.array([[10.0, 0.0], [0.0, 10.0]]))
    np.testing.assert_allclose(found, [1.0, 100.0], rtol=0.1)


def test_knn_by_hand() -> None:
    """Ten training samples along x, one along y: the tenth nearest of (5, 0) is at 0, that of (0, 5) at sqrt 2."""
    training = TrainingFeatures(np.array([[[2, 0]] * 10 + [[0, 3]]], dtype=np.float32), np.zeros(11, dtype=np.int64), 11)
    found = Knn(training).score(predictions(np.array([[[5, 0], [0, 5], [1, 1]]], dtype=np.float32)))
    np.testing.assert_allclose(found, [0, np.sqrt(2), np.sqrt(2 - np.sqrt(2))], atol=1e-6)


@pytest.mark.parametrize("name", ["mahalanobis", "knn"])
def test_mean_over_members_and_far_samples(name: str, tmp_path: Path) -> None:
    """The state survives its file; the score is the mean of each member's own; far samples score higher."""
    rng = np.random.default_rng(1)
    centres = 6 * rng.normal(size=(3, 8))
    labels = rng.integers(3, size=300)
    features = (centres[labels] + rng.normal(size=(2, 300, 8))).astype(np.float32)
    TrainingFeatures(features, labels, 900, "abc").save(tmp_path / "f.safetensors")
    training = TrainingFeatures.load(tmp_path / "f.safetensors")
    assert (training.total, training.model_digest) == (900, "abc")
    score = build_scores([name], training)[0]
    assert score.name == name and score.definition.endswith(".") and needs_features([name]) and not needs_features(["entropy"])
    near = predictions((centres[rng.integers(3, size=80)] + rng.normal(size=(2, 80, 8))).astype(np.float32))
    far = predictions((-centres.sum(axis=0) + 3 * rng.normal(size=(2, 60, 8))).astype(np.float32), "far")
    joined = score.score(join(near, far))
    assert auroc_ood(joined[:80], joined[80:]) > 0.95
    parts = [replace(training, features_MKF=training.features_MKF[m : m + 1]) for m in (0, 1)]
    alone = [build_scores([name], part)[0].score(near.member(m)) for m, part in enumerate(parts)]
    np.testing.assert_allclose(joined[:80], np.mean(alone, axis=0))
    with pytest.raises(SveError, match="2 members and 8 numbers; training has 2 and 4"):
        build_scores([name], replace(training, features_MKF=training.features_MKF[:, :, :4]))[0].score(near)
    with pytest.raises(SveError, match="hold no features"):
        score.score(replace(near, features_MNF=None))
    with pytest.raises(SveError, match="needs training features"):
        build_scores([name])


def test_what_cannot_be_fitted_is_said(tmp_path: Path) -> None:
    same = TrainingFeatures(np.ones((1, 12, 3), dtype=np.float32), np.zeros(12, dtype=np.int64), 12)
    with pytest.raises(SveError, match="all have the same features"):
        Mahalanobis(same)
    few = TrainingFeatures(np.ones((1, 3, 3), dtype=np.float32), np.zeros(3, dtype=np.int64), 3)
    with pytest.raises(SveError, match="needs 10 training samples"):
        Knn(few).score(predictions(np.ones((1, 2, 3), dtype=np.float32)))
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(SveError, match="Cannot read the training features"):
        TrainingFeatures.load(tmp_path / "x.safetensors")


def test_the_state_is_bounded() -> None:
    assert rows_kept(4, 384) == MOST_ROWS and rows_kept(16, 4096) * 16 * 4096 <= 16_000_000
