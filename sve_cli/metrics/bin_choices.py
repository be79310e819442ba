"""How much the calibration error depends on the number of bins."""

from __future__ import annotations

from sve_cli.metrics.adaptive_ece import adaptive_ece_top1
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.ece import ece_top1
from sve_cli.report import BinChoice

CHOICES = (5, 10, 15, 20, 30, 50)


def bin_choices(view: Aggregated) -> list[BinChoice]:
    """The top-label calibration error with 5 to 50 bins of equal width and of equal mass; nothing without labels."""
    labelled = view.labelled()
    if not labelled.n:
        return []
    return [BinChoice(bins, ece_top1.compute(labelled, bins), adaptive_ece_top1.compute(labelled, bins)) for bins in CHOICES]
