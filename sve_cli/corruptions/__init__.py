"""Corruptions of inputs at five severities: what a network may meet after it was trained, with the labels as they were."""

from sve_cli.corruptions.base import SEVERITIES, Corruption, ImageCorruption, TextCorruption, keyed_rng
from sve_cli.corruptions.build import choose, require_severities
from sve_cli.corruptions.inputs import CorruptedImages, corrupt

__all__ = [
    "SEVERITIES",
    "CorruptedImages",
    "Corruption",
    "ImageCorruption",
    "TextCorruption",
    "choose",
    "corrupt",
    "keyed_rng",
    "require_severities",
]
