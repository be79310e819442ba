"""Equal-width bins of a probability."""

from __future__ import annotations

import numpy as np


def bin_index(probability: np.ndarray, bins: int) -> np.ndarray:
    """ceil(bins * p) - 1 clipped to 0 ... bins - 1: bin b holds (b/bins, (b+1)/bins], the first one also 0."""
    return np.clip(np.ceil(bins * probability).astype(np.int64) - 1, 0, bins - 1)
