"""Distance to the k-th nearest training sample in feature space (Sun et al. 2022, arXiv 2204.06507)."""

from __future__ import annotations

import numpy as np

from sve_cli.diversity import NEIGHBOURS, nearest_distances
from sve_cli.ood.training_features import TrainingFeatures, features_of
from sve_cli.predictions import Predictions


class Knn:
    """Distance to the 10th nearest training sample, features scaled to length 1; mean over members."""

    name = "knn"
    needs_features = True
    definition = (
        f"Mean over members of the Euclidean distance of a sample's features to their {NEIGHBOURS}th nearest training features, "
        "all scaled to length 1."
    )

    def __init__(self, training: TrainingFeatures) -> None:
        self.training = training

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        pairs = zip(features_of(predictions, self.training), self.training.features_MKF, strict=True)
        return np.asarray(np.mean([nearest_distances(queries, known).max(axis=1) for queries, known in pairs], axis=0))
