"""Maximum of the members' mean logit."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions


class MaxLogitOfMean:
    """Minus the largest of the logits averaged over members; whatever the aggregate."""

    name = "max_logit_of_mean"
    definition = "Minus the largest of the logits averaged over members, whatever the aggregate."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        mean_NC = predictions.logits_MNC.mean(axis=0, dtype=np.float64)
        shown_NC = mean_NC if predictions.mask_NC is None else np.where(predictions.mask_NC, mean_NC, -np.inf)
        return -np.asarray(shown_NC.max(axis=1))
