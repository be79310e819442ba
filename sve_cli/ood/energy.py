"""Energy (Liu et al. 2020, arXiv 2010.03759)."""

from __future__ import annotations

import numpy as np

from sve_cli.predictions import Predictions
from sve_cli.statistics import energy

NORMALISED = 1e-5  # an energy of float32 log-probabilities is below this


class Energy:
    """Mean over members of the energy of their logits; whatever the aggregate."""

    name = "energy"
    definition = "Mean over members of -ln sum exp(logits) at temperature 1, whatever the aggregate."

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,)."""
        found_N = np.asarray(np.mean([energy(logits_NC, predictions.mask_NC) for logits_NC in predictions.logits_MNC], axis=0))
        # Log-probabilities, as files of probabilities hold them, have energy 0 but for rounding, which must not rank samples.
        return np.zeros_like(found_N) if np.abs(found_N).max(initial=0.0) < NORMALISED else found_N
