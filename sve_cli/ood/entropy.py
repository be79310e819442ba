"""Entropy of the ensemble's distribution as an OOD score."""

from __future__ import annotations

import numpy as np

from sve_cli.ood.base import ENTROPY_UNIT
from sve_cli.predictions import Predictions
from sve_cli.statistics import ensemble_uncertainty


class Entropy:
    """Entropy of the ensemble's distribution."""

    name = "entropy"
    definition = f"Entropy of the ensemble's distribution ({ENTROPY_UNIT})."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        return ensemble_uncertainty(predictions.logits_MNC, predictions.mask_NC, aggregate).total_N
