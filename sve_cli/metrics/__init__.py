"""Metrics: pure functions of predictions, one idea a file."""
