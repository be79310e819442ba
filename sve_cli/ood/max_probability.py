"""Maximum probability (Hendrycks & Gimpel 2017, arXiv 1610.02136)."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions
from sve_cli.statistics import mean_log_probs, tied


class MaxProbability:
    """1 - the largest probability of the ensemble's distribution."""

    name = "max_probability"
    definition = "1 - largest probability of the ensemble's distribution."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        log_probs_NC = mean_log_probs(predictions.logits_MNC, predictions.mask_NC, aggregate)
        return tied(-np.expm1(log_probs_NC.max(axis=1)))  # keeps the order of confidences that round to 1
