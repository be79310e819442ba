"""OOD scores by their names."""

from __future__ import annotations

from collections.abc import Sequence

from sve_cli.errors import SveError
from sve_cli.ood.base import OodScore
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.registry import OOD_SCORES


def needs_features(names: Sequence[str]) -> bool:
    """Whether one of these scores measures distances to the training features."""
    return any(getattr(OOD_SCORES.resolve(name), "needs_features", False) for name in names)


def build_scores(names: Sequence[str], training: TrainingFeatures | None = None) -> list[OodScore]:
    """The scores, with their state where they have one.

    Raises:
        SveError: an unknown score, or one that needs training features without any.
    """
    built: list[OodScore] = []
    for name in names:
        made = OOD_SCORES.resolve(name)
        if not needs_features([name]):
            built.append(made())
        elif training is None:
            raise SveError(
                f"The score '{name}' needs training features, which only the evaluation of a run has.",
                "Choose other scores here, or evaluate a run.",
            )
        else:
            built.append(made(training))
    return built
