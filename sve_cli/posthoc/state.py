"""The stored post-hoc state of a run, and the split of the validation set it is fitted on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from sve_cli.errors import SveError
from sve_cli.posthoc.conformal import Conformal
from sve_cli.posthoc.temperature import Temperature
from sve_cli.posthoc.thresholds import Abstention, OodThreshold
from sve_cli.posthoc.vector import Vector
from sve_cli.posthoc.weights import Weights
from sve_cli.statistics import seeded

SCHEMA = "sve-posthoc/1"


@dataclass(frozen=True)
class Posthoc:
    """What was fitted on held-back predictions; None: not fitted. Further steps become further fields."""

    temperature: Temperature | None = None
    vector: Vector | None = None
    abstention: Abstention | None = None
    ood_threshold: OodThreshold | None = None
    conformal: Conformal | None = None
    weights: Weights | None = None

    def how(self, aggregate: str) -> str:
        """The setting `evaluate.aggregate` with what was fitted for it."""
        return aggregate if self.weights is None else self.weights.aggregate

    def to_json(self) -> str:
        """The JSON document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Posthoc:
        """Read what `to_json` wrote.

        Raises:
            SveError: not a post-hoc document of this schema.
        """
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
                raise SveError(f"This is not a post-hoc document of schema {SCHEMA}.", "Evaluate the run again.")
            temperature, vector = raw["temperature"], raw.get("vector")  # older documents have no vector, nor what follows
            return Posthoc(
                temperature=None if temperature is None else Temperature(**temperature),
                vector=None if vector is None else Vector(**vector),
                abstention=None if (rule := raw.get("abstention")) is None else Abstention(**rule),
                ood_threshold=None if (rule := raw.get("ood_threshold")) is None else OodThreshold(**rule),
                weights=None if (rule := raw.get("weights")) is None else Weights(**rule),
                conformal=None if (rule := raw.get("conformal")) is None else Conformal(**rule),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SveError(f"The post-hoc document is damaged ({error}).", "Evaluate the run again.") from error


def split_validation(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows of a validation set in two halves by seed, each in increasing order -> (selection, calibration).

    Selection (the larger half when n is odd) serves model selection, the temperature, vector scaling and the members' weights;
    calibration serves thresholds and conformal sets, whose guarantees need samples that nothing else was fitted on.
    """
    order = seeded(seed, "validation split").permutation(n)
    half = (n + 1) // 2
    return np.sort(order[:half]), np.sort(order[half:])
