"""What an evaluation fits on the selection half of the validation predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sve_cli.posthoc.state import Posthoc, split_validation
from sve_cli.posthoc.temperature import fit_temperature
from sve_cli.posthoc.vector import fit_vector, options_vary
from sve_cli.posthoc.weights import fit_weights
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.statistics import WEIGHTED


def fit_posthoc(validation: Predictions, spec: EvaluateSpec, seed: int) -> Posthoc:
    """Fit what the recipe asks for on the selection half of the validation predictions; vector scaling where it can be.

    The members' weights too: on the other half they would spoil the guarantees of the thresholds and sets fitted there.
    """
    selection = validation.subset(split_validation(validation.n_samples, seed)[0])
    fitted = Posthoc(weights=fit_weights(selection) if spec.aggregate == WEIGHTED else None)
    how = fitted.how(spec.aggregate)
    temperature = fit_temperature(selection, how) if spec.temperature else None
    vector = fit_vector(selection, how) if spec.vector and not options_vary(validation) else None
    return replace(fitted, temperature=temperature, vector=vector)


def with_weights(spec: EvaluateSpec, posthoc: Posthoc) -> EvaluateSpec:
    """The settings with the fitted weights in them, for everything that averages members."""
    changes: dict[str, Any] = {"aggregate": posthoc.how(spec.aggregate)}
    return replace(spec, **changes)
