"""Whether the rows of a benchmark can be built, asked before the first is trained: ranks, targets, settings that exclude."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Head, LinearView, load_backbone
from sve_cli.benchmark import Cell, CellResult, precision_of
from sve_cli.ensemble import MemberHeads
from sve_cli.errors import SveError
from sve_cli.recipe import Recipe
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import HEADS_ALONE, METHODS, TASKS
from sve_cli.training import precision_name, training_precision
from sve_cli.workflows.session import default_device


class _EnoughError(Exception):
    """A build came to its first expensive part, so that what it refuses by then is not refused."""


class _Probe:
    """Backbone, task and factors of a build that ends where it would decompose a weight or make heads.

    Attributes:
        frozen_heads: heads that do not train are made, of a stand-in, for a method that may refuse them.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, frozen_heads: bool = False) -> None:
        self.backbone, self.frozen_heads = backbone, frozen_heads

    def fresh(self, share: bool = True) -> nn.Module:
        """A structural copy, which never costs memory here."""
        return self.backbone.fresh()

    def targets(self, spec: MethodSpec, network: nn.Module | None = None) -> list[LinearView]:
        return self.backbone.targets(spec, network)

    def get(self, weight_OI: Tensor, name: str) -> Any:
        raise _EnoughError

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        if not self.frozen_heads:
            raise _EnoughError
        return MemberHeads([Head(torch.zeros(1, self.backbone.feature_dim), None, None)] * n_members, trainable=False)


def trains_nothing(recipe: Recipe) -> bool:
    """Whether a method that trains heads alone has none to train."""
    return recipe.method.name in HEADS_ALONE and not TASKS.resolve(recipe.task.name).trains_heads(recipe.task)


def check_builds(rows: Iterable[tuple[Cell, Recipe]], stored: Iterable[CellResult] = (), one_precision: bool = True) -> None:
    """Refuse rows whose method would refuse its recipe or the network. Each checkpoint is opened once, nothing is decomposed.

    Args:
        stored: the rows that are there already.
        one_precision: whether all rows of the table must be trained in the same; not where precisions are swept.

    Raises:
        SveError: a method cannot be built so; a checkpoint cannot be opened; rows would be trained in different precisions.
    """
    took = {found: cell.label for cell in stored if (found := precision_of(cell))}
    checkpoints: dict[str, dict[str, tuple[Cell, Recipe]]] = {}
    for cell, recipe in rows:
        same = checkpoints.setdefault(repr((recipe.model, recipe.task.name)), {})
        same.setdefault(repr((recipe.method, recipe.train.precision)), (cell, recipe))
    several = len({cell.method for same in checkpoints.values() for cell, _ in same.values()}) > 1
    for same in checkpoints.values():
        _, first = next(iter(same.values()))
        backbone = load_backbone(first.model, first.task.name)
        for cell, recipe in same.values():
            _check_build(_Probe(backbone, trains_nothing(recipe)), cell, recipe, several)
            if recipe.method.name in HEADS_ALONE and recipe.data.augment == "none":  # on features, which are always float32
                continue
            here = precision_name(training_precision(recipe.train, default_device(), backbone.network))
            if one_precision and (other := next((name for name in took if name != here), None)):
                raise SveError(
                    f"'{cell.row}' would be trained in {here}, but '{took[other]}' in {other}.",
                    f"Write train.precision={other} for all, or give them a folder of their own with --out.",
                )
            took.setdefault(here, cell.row)


def _check_build(probe: _Probe, cell: Cell, recipe: Recipe, several: bool) -> None:
    method = METHODS.resolve(recipe.method.name)
    try:
        method.build(probe, probe, recipe.method, probe, method.Params(**recipe.method.params), recipe.seed)
    except _EnoughError:
        return
    except SveError as error:
        without = f" Or leave {cell.method} out of --methods." if several else ""
        raise SveError(f"'{cell.row}' cannot be trained: {error.message}", f"{error.hint}{without}".lstrip()) from error
