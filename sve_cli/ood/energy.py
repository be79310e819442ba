"""Energy (Liu et al. 2020, arXiv 2010.03759)."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions
from sve_cli.statistics import energy


class Energy:
    """Mean over members of the energy of their logits; whatever the aggregate."""

    name = "energy"
    definition = "Mean over members of -ln sum exp(logits) at temperature 1, whatever the aggregate."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        return np.asarray(np.mean([energy(logits_NC, predictions.mask_NC) for logits_NC in predictions.logits_MNC], axis=0))
