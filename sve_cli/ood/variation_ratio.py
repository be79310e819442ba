"""Variation ratio (Freeman 1965) as an OOD score."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions


class VariationRatio:
    """1 - the share of members that name the most named class; whatever the aggregate."""

    name = "variation_ratio"
    definition = "1 - share of members that name the most named class; 0 for one member, so no better than chance there."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        n_members, n, n_classes = predictions.logits_MNC.shape
        votes_NC = np.zeros((n, n_classes), dtype=np.int64)
        for logits_NC in predictions.logits_MNC:
            shown_NC = logits_NC if predictions.mask_NC is None else np.where(predictions.mask_NC, logits_NC, -np.inf)
            votes_NC[np.arange(n), shown_NC.argmax(axis=1)] += 1
        return np.asarray(1.0 - votes_NC.max(axis=1) / n_members)
