"""The decomposition of a weight, once, and the content-addressed store that keeps it."""

from __future__ import annotations

from sve_cli.factors.decomposition import (
    ALGORITHM,
    Factors,
    LayerStatistics,
    Verification,
    decompose_weight,
    in_out,
    statistics,
    verify,
    weight_key,
)
from sve_cli.factors.store import FactorStore, cache_root

__all__ = [
    "ALGORITHM",
    "FactorStore",
    "Factors",
    "LayerStatistics",
    "Verification",
    "cache_root",
    "decompose_weight",
    "in_out",
    "statistics",
    "verify",
    "weight_key",
]
