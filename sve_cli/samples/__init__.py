"""Samples: what data sources hand to tasks, before any network has seen it."""

from sve_cli.samples.images import SUFFIXES, ImageItem, LazyImages, decode_image, is_file, is_image_type
from sve_cli.samples.split import DataSet, Modality, Samples

__all__ = ["SUFFIXES", "DataSet", "ImageItem", "LazyImages", "Modality", "Samples", "decode_image", "is_file", "is_image_type"]
