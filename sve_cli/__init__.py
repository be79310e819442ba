"""Singular Value Ensembles: make a pretrained checkpoint know what it does not know."""

__version__ = "0.1.0"
