"""Open a checkpoint (timm, transformers, local folder), name and swap its linear layers, its input transform."""

from __future__ import annotations

from sve_cli.backbone.base import Backbone, Head, Inputs, looks_random, replace_module
from sve_cli.backbone.identity import identity, require_same
from sve_cli.backbone.linears import LinearView
from sve_cli.backbone.resolve import Location, locate
from sve_cli.backbone.targets import block_of, has_attention, select_targets
from sve_cli.backbone.weights import Late, Writing
from sve_cli.errors import CheckpointError
from sve_cli.hub import cache_when_unreachable
from sve_cli.recipe.spec import ModelSpec

__all__ = [
    "Backbone",
    "Head",
    "Inputs",
    "Late",
    "LinearView",
    "Writing",
    "block_of",
    "has_attention",
    "identity",
    "load_backbone",
    "locate",
    "looks_random",
    "replace_module",
    "require_same",
    "select_targets",
]


def load_backbone(spec: ModelSpec, task_name: str) -> Backbone:
    """Open the checkpoint for a task.

    Raises:
        CheckpointError: it cannot be opened, or is of the wrong kind for the task.
    """
    location = locate(spec)
    if location.path is None:
        with cache_when_unreachable():
            return _opened(location, spec, task_name)
    return _opened(location, spec, task_name)


def _opened(location: Location, spec: ModelSpec, task_name: str) -> Backbone:
    if task_name == "image_classification":
        if location.library != "timm":
            raise CheckpointError(
                f"'{spec.name}' is not a timm network, and images are classified with timm networks.",
                "Write model.name: timm:NAME, or name a timm folder.",
            )
        from sve_cli.backbone.timm_backbone import load_timm

        return load_timm(location, spec)
    if location.library != "transformers":
        raise CheckpointError(f"'{spec.name}' is a timm network, which cannot read text.", "Name a transformers checkpoint.")
    if task_name == "multiple_choice":
        from sve_cli.backbone.causal_lm import load_causal_lm

        return load_causal_lm(location, spec)
    from sve_cli.backbone.transformers_backbone import load_classifier

    return load_classifier(location, spec)
