"""Energy of the members' mean log-probability."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions
from sve_cli.statistics import ROUNDING, energy, log_softmax


class EnergyOfMean:
    """-ln sum exp of the mean over members of their log-probabilities; whatever the aggregate.

    Each member's log-probabilities have energy 0, so this is how far the members are from agreeing: 0 when they do.
    """

    name = "energy_of_mean"
    definition = (
        "-ln sum exp(mean over members of ln p) at temperature 1, whatever the aggregate; how far the members are from agreeing, "
        "0 for one member, so no better than chance there."
    )

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        mask_NC = predictions.mask_NC
        if predictions.n_members == 1:
            return np.zeros(predictions.n_samples)
        total_NC = np.zeros(predictions.logits_MNC.shape[1:])
        for logits_NC in predictions.logits_MNC:
            total_NC += log_softmax(logits_NC, mask_NC)
        found_N: np.ndarray = energy(total_NC / predictions.n_members, mask_NC)
        return np.where(np.abs(found_N) < ROUNDING, 0.0, found_N)  # members that agree tie at 0
