"""Data in: named sets, local files and the hub to samples."""

from sve_cli.data.load import limited, load_data, load_samples
from sve_cli.samples import DataSet, Samples, decode_image

__all__ = ["DataSet", "Samples", "decode_image", "limited", "load_data", "load_samples"]
