"""Mahalanobis distance in feature space (Lee et al. 2018, arXiv 1807.03888)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from sve_cli.errors import SveError
from sve_cli.ood.training_features import TrainingFeatures, features_of
from sve_cli.predictions import Predictions


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian a class with one covariance, in coordinates where that is the identity. Shapes: C classes seen, F features."""

    factor_FF: np.ndarray
    means_CF: np.ndarray

    def distance(self, features_NF: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance to the nearest class mean (N,)."""
        white_NF = solve_triangular(self.factor_FF, features_NF.astype(np.float64).T, lower=True).T
        squared_NC = (white_NF**2).sum(axis=1)[:, None] + (self.means_CF**2).sum(axis=1) - 2.0 * white_NF @ self.means_CF.T
        return np.asarray(np.maximum(squared_NC, 0.0).min(axis=1))


class Mahalanobis:
    """Squared distance to the nearest class mean, with the classes' common covariance; mean over members."""

    name = "mahalanobis"
    needs_features = True
    definition = (
        "Mean over members of the squared Mahalanobis distance of a sample's features to the nearest class mean of the training "
        "features, with one covariance for all classes, shrunk after Ledoit and Wolf (2004)."
    )

    def __init__(self, training: TrainingFeatures) -> None:
        self.training = training
        self.members = [fit_gaussians(features_KF, training.labels_K) for features_KF in training.features_MKF]

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        pairs = zip(self.members, features_of(predictions, self.training), strict=True)
        return np.asarray(np.mean([member.distance(features_NF) for member, features_NF in pairs], axis=0))


def fit_gaussians(features_KF: np.ndarray, labels_K: np.ndarray) -> Gaussians:
    """Class means and the shrunk covariance around them.

    Raises:
        SveError: all samples of each class have the same features.
    """
    features = features_KF.astype(np.float64)
    classes, which_K = np.unique(labels_K, return_inverse=True)
    means_CF = np.stack([features[which_K == c].mean(axis=0) for c in range(len(classes))])
    covariance_FF = ledoit_wolf(features - means_CF[which_K])
    scale = float(np.trace(covariance_FF)) / len(covariance_FF)
    if scale <= 0.0:
        raise SveError(
            "The training samples of each class all have the same features, so no Mahalanobis distance can be measured.",
            "Leave mahalanobis out of evaluate.ood_scores, or train on more samples.",
        )
    factor_FF = cholesky(covariance_FF + 1e-10 * scale * np.eye(len(covariance_FF)), lower=True)
    return Gaussians(factor_FF, solve_triangular(factor_FF, means_CF.T, lower=True).T)


def ledoit_wolf(centred_KF: np.ndarray) -> np.ndarray:
    """Covariance (F, F) pulled toward a multiple of the identity, by as much as minimises the expected squared error.

    Ledoit and Wolf, J. Multivariate Analysis 88 (2004). The features are centred already.
    """
    n, width = centred_KF.shape
    sample_FF = centred_KF.T @ centred_KF / n
    mean = float(np.trace(sample_FF)) / width
    spread = float(((sample_FF - mean * np.eye(width)) ** 2).sum())
    noise = (float(((centred_KF**2).sum(axis=1) ** 2).mean()) - float((sample_FF**2).sum())) / n
    share = min(max(noise, 0.0), spread) / spread if spread > 0 else 0.0
    return np.asarray((1.0 - share) * sample_FF + share * mean * np.eye(width))
