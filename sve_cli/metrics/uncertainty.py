"""Mean uncertainties, see `statistics.ensemble_uncertainty`."""

from __future__ import annotations

from sve_cli.metrics.base import Metric, weighted_mean

_UNIT = "nats; divided by ln K_n when the number of options K_n varies between samples"

entropy_mean = Metric(
    "entropy_mean",
    "none",
    f"Mean entropy of the ensemble's distribution: total uncertainty ({_UNIT}).",
    lambda view, bins: weighted_mean(view, view.entropy_N),
    needs_labels=False,
)

expected_entropy_mean = Metric(
    "expected_entropy_mean",
    "none",
    f"Mean of the members' mean entropy: aleatoric uncertainty ({_UNIT}).",
    lambda view, bins: weighted_mean(view, view.expected_entropy_N),
    needs_labels=False,
)

mutual_information_mean = Metric(
    "mutual_information_mean",
    "none",
    f"Mean of the entropy of the mean probability minus the expected entropy: epistemic uncertainty ({_UNIT}); 0 for one member.",
    lambda view, bins: weighted_mean(view, view.mutual_information_N),
    needs_labels=False,
)
