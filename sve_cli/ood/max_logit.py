"""Maximum logit (Hendrycks et al. 2022, arXiv 1911.11132)."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions


class MaxLogit:
    """Minus the mean over members of their largest logit; whatever the aggregate."""

    name = "max_logit"
    definition = "Minus the mean over members of the largest logit, whatever the aggregate."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        mask_NC = predictions.mask_NC
        kept = (z_NC if mask_NC is None else np.where(mask_NC, z_NC, -np.inf) for z_NC in predictions.logits_MNC)
        return -np.asarray(np.mean([z_NC.max(axis=1).astype(np.float64) for z_NC in kept], axis=0))
