"""Mean of the members' entropies as an OOD score."""

from __future__ import annotations

import numpy as np

from sve_cli.ood.base import ENTROPY_UNIT
from sve_cli.predictions import Predictions
from sve_cli.statistics import ensemble_uncertainty


class ExpectedEntropy:
    """Mean of the members' entropies."""

    name = "expected_entropy"
    definition = f"Mean of the members' entropies ({ENTROPY_UNIT})."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        return ensemble_uncertainty(predictions.logits_MNC, predictions.mask_NC, aggregate).expected_N
