"""Weighted sums over samples, as functions of the weights of the units that are resampled.

A unit is a sample, or a group of samples that are resampled together (`Aggregated.unit_N`). Whatever a metric sums over samples is
summed within the units once; a resample then costs as much as there are units, not samples.
Shapes: N samples, U units, R resamples, G rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from sve_cli.metrics.aggregate import Aggregated

SMALL, DENSE, FULL = 100_000, 4_000_000, 0.02  # numbers in a table, and the share of them that is not 0

# Weights of the units in each resample, float64 (U, R) -> sums, (R,) or (G, R).
Sums = Callable[[np.ndarray], np.ndarray]


def unit_index(view: Aggregated) -> tuple[np.ndarray, int]:
    """The unit of each sample, and how many units there are."""
    return (np.arange(view.n), view.n) if view.unit_N is None else (view.unit_N, view.n_units)


def sum_by(view: Aggregated, row_N: np.ndarray, rows: int, values_N: np.ndarray | None = None) -> Sums:
    """Sums of weight * value over the samples of each row of a table -> (G, R); value 1 when `values_N` is None."""
    unit_N, units = unit_index(view)
    values = np.ones(view.n) if values_N is None else values_N
    kept = np.flatnonzero(values)
    return times(csr_array((values[kept], (row_N[kept], unit_N[kept])), shape=(rows, units)))


def times(matrix: csr_array) -> Sums:
    """The product of a table (G, U) with the weights; a small and full table is made dense, which is faster."""
    size = matrix.shape[0] * matrix.shape[1]
    if SMALL < size <= DENSE and matrix.nnz > FULL * size:
        full_GU = matrix.toarray()
        return lambda weights_UR: np.asarray(full_GU @ weights_UR)
    return lambda weights_UR: np.asarray(matrix @ weights_UR)


def remembering(sums: Sums) -> Sums:
    """The same function, which keeps the result for the last weights: several metrics ask for it in turn."""
    last: list[np.ndarray] = []

    def remembered(weights_UR: np.ndarray) -> np.ndarray:
        if not last or last[0] is not weights_UR:
            last[:] = [weights_UR, sums(weights_UR)]
        return last[1]

    return remembered


class _Pool:
    """Sums of several values a sample, which one product of matrices gives together: the weights are read once, not once each."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self._sums = remembering(lambda weights_UR: np.stack(self.rows) @ weights_UR)

    def add(self, values_U: np.ndarray) -> int:
        """The row of these values."""
        self.rows.append(values_U)
        return len(self.rows) - 1

    def row(self, index: int, weights_UR: np.ndarray) -> np.ndarray:
        """Sum of weight * value -> (R,); a row that came after the last product is summed alone."""
        sums_KR = self._sums(weights_UR)
        return np.asarray(sums_KR[index] if index < len(sums_KR) else self.rows[index] @ weights_UR)


def sum_of(view: Aggregated, values_N: np.ndarray) -> Sums:
    """Sum of weight * value over all samples -> (R,)."""
    pool: _Pool = view.once("pool of sums", _Pool)
    index = pool.add(values_N if view.unit_N is None else np.bincount(view.unit_N, values_N, minlength=view.n_units))
    return lambda weights_UR: pool.row(index, weights_UR)


def mass_of(view: Aggregated) -> Sums:
    """The weight of all samples together -> (R,)."""
    mass: Sums = view.once("mass", lambda: sum_of(view, np.ones(view.n)))
    return mass
