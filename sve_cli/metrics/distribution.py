"""The ensemble's log-probabilities: kept where they are few, else made from the members' logits block by block.

A million samples of 100 classes are 800 MB in float64. No metric needs them all at once.
Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sve_cli.statistics import mean_log_probs

KEPT = 4_000_000  # numbers: as many are kept (32 MB)
BLOCK = 200_000  # numbers of one block: they stay in the processor's cache


@dataclass(frozen=True)
class Distribution:
    """Log-probabilities (N, C) of the ensemble in float64, -inf where an option does not exist.

    Attributes:
        mask_NC: bool, the option exists; None: every one does.
        kept_NC: the log-probabilities, where they are kept.
        logits_MNC, how, rows_N: what they are made from otherwise; `rows_N`: which samples, None: all.
    """

    mask_NC: np.ndarray | None
    kept_NC: np.ndarray | None = None
    logits_MNC: np.ndarray | None = None
    how: str = "probs"
    rows_N: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        if self.kept_NC is not None:
            return (len(self.kept_NC), self.kept_NC.shape[1])
        assert self.logits_MNC is not None
        return (self.logits_MNC.shape[1] if self.rows_N is None else len(self.rows_N), self.logits_MNC.shape[2])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of each block and their log-probabilities; one block where they are kept."""
        if self.kept_NC is not None:
            yield slice(0, len(self.kept_NC)), self.kept_NC
            return
        for rows in row_blocks(*self.shape):
            yield rows, self._made(rows)

    def all(self) -> np.ndarray:
        """All of them (N, C), which for many samples takes much memory."""
        if self.kept_NC is not None:
            return self.kept_NC
        return np.concatenate([log_probs_BC for _, log_probs_BC in self.blocks()])

    def part(self, index_K: np.ndarray) -> Distribution:
        """The samples with these numbers."""
        mask_NC = None if self.mask_NC is None else self.mask_NC[index_K]
        if self.kept_NC is not None:
            return replace(self, mask_NC=mask_NC, kept_NC=self.kept_NC[index_K])
        return replace(self, mask_NC=mask_NC, rows_N=index_K if self.rows_N is None else self.rows_N[index_K])

    def _made(self, rows: slice) -> np.ndarray:
        assert self.logits_MNC is not None
        chosen = rows if self.rows_N is None else self.rows_N[rows]
        return mean_log_probs(self.logits_MNC[:, chosen], None if self.mask_NC is None else self.mask_NC[rows], self.how)


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Consecutive rows, about `BLOCK` numbers of `width` a row together."""
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
