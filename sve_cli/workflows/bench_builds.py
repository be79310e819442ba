"""Whether the rows of a benchmark can be built, asked before the first is trained: ranks, targets, settings that exclude."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sve_cli.backbone import Backbone, LinearView, load_backbone
from sve_cli.benchmark import Cell
from sve_cli.ensemble import MemberHeads
from sve_cli.errors import SveError
from sve_cli.recipe import Recipe
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import METHODS


class _EnoughError(Exception):
    """A build came to its first expensive part, so that what it refuses by then is not refused."""


class _Probe:
    """Backbone, task and factors of a build that ends where it would decompose a weight or make heads."""

    classes: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def fresh(self, share: bool = True) -> nn.Module:
        """A structural copy, which never costs memory here."""
        return self.backbone.fresh()

    def targets(self, spec: MethodSpec, network: nn.Module | None = None) -> list[LinearView]:
        return self.backbone.targets(spec, network)

    def get(self, weight_OI: Tensor, name: str) -> Any:
        raise _EnoughError

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        raise _EnoughError


def check_builds(rows: Iterable[tuple[Cell, Recipe]]) -> None:
    """Refuse rows whose method would refuse its recipe or the network. Each checkpoint is opened once, nothing is decomposed.

    Raises:
        SveError: a method cannot be built so; a checkpoint cannot be opened.
    """
    checkpoints: dict[str, dict[str, tuple[Cell, Recipe]]] = {}
    for cell, recipe in rows:
        same = checkpoints.setdefault(repr((recipe.model, recipe.task.name)), {})
        same.setdefault(repr(recipe.method), (cell, recipe))
    for same in checkpoints.values():
        _, first = next(iter(same.values()))
        probe = _Probe(load_backbone(first.model, first.task.name))
        for cell, recipe in same.values():
            _check_build(probe, cell, recipe)


def _check_build(probe: _Probe, cell: Cell, recipe: Recipe) -> None:
    method = METHODS.resolve(recipe.method.name)
    try:
        method.build(probe, probe, recipe.method, probe, method.Params(**recipe.method.params), recipe.seed)
    except _EnoughError:
        return
    except SveError as error:
        raise SveError(f"'{cell.row}' cannot be trained: {error.message}", error.hint) from error
