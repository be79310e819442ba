"""What an OOD score is."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sve_cli.predictions import Predictions


class OodScore(Protocol):
    """A score of each sample, higher = more out-of-distribution.

    Attributes:
        name: its name in the registry.
        definition: one line for the report.
    """

    name: str
    definition: str

    def score(self, predictions: Predictions, aggregate: str = "probs") -> np.ndarray:
        """Score the samples -> (N,) float64. `aggregate` as in `statistics.mean_log_probs`; not every score uses it."""
        ...


ENTROPY_UNIT = "nats; divided by ln K_n when the number of options varies"
