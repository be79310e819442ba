"""Where training moved the singular values: the spectrum part of a report.

Shapes: M members, R singular values of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sve_cli.diversity import cosine_matrix, inner_products
from sve_cli.ensemble import Ensemble
from sve_cli.report import Report, Spectrum, SpectrumLayer
from sve_cli.rundir import RunDir

PARTS = 10


@runtime_checkable
class HasGains(Protocol):
    """A layer whose members are made of singular values."""

    def gain_MR(self, members: tuple[int, ...]) -> Tensor:
        """max(s_m, 0) / S."""


def run_spectrum(run: RunDir, opened: Callable[[], Ensemble]) -> Spectrum | None:
    """Of an earlier evaluation of the run, else measured on the ensemble that `opened` gives; None without Σ."""
    for folder in run.evaluations():
        earlier = Report.load(folder / "report.json")
        if earlier.spectrum is not None or "sigma" not in earlier.parameters:
            return earlier.spectrum
    return spectrum_of(opened())


def spectrum_of(ensemble: Ensemble) -> Spectrum | None:
    """How far every layer's singular values moved, by rank, and how far the members agree; None without Σ."""
    if not any(group.role == "sigma" for group in ensemble.groups):
        return None
    every = tuple(range(ensemble.n_members))
    layers = []
    with torch.no_grad():
        for linear in ensemble.member_linears():
            if isinstance(linear, HasGains):
                layers.append(layer_spectrum(linear.view.name, (linear.gain_MR(every) - 1.0).double().cpu().numpy()))
    sigma_init = getattr(getattr(ensemble, "params", None), "sigma_init", None)
    # The mean of |ε| for ε ~ N(0, sigma_init²).
    start = None if sigma_init is None else sigma_init * math.sqrt(2.0 / math.pi)
    return Spectrum(ensemble.n_members, start, layers)


def layer_spectrum(name: str, changes_MR: np.ndarray) -> SpectrumLayer:
    """One layer from (s_m - S) / S, the largest singular values first."""
    moved_MR = np.abs(changes_MR)
    members, rank = moved_MR.shape
    by_rank = [float(part.mean()) for part in np.array_split(moved_MR, min(PARTS, rank), axis=1)]
    cosine = None
    if members > 1:
        between = cosine_matrix(inner_products(changes_MR))[np.triu_indices(members, 1)]
        cosine = float(between.mean()) if np.isfinite(between).all() else None
    return SpectrumLayer(name, rank, float(moved_MR.mean()), by_rank, cosine)
