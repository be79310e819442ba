"""A registry whose methods are small fakes, so that loading imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sve_cli.recipe import loader, schema
from sve_cli.recipe.spec import doc
from sve_cli.registry import Registry


@dataclass(frozen=True)
class FakeParams:
    """Parameters of the fake method."""

    sigma_init: float = doc("Spread.", 0.01, low=0.0, high=1.0)
    biases: Literal["member", "frozen"] = doc("Biases.", "member")
    rank: int | None = doc("Rank.", None, low=1)


@dataclass(frozen=True)
class NeedyParams:
    """A parameter without a default."""

    rank: int = doc("Rank.", low=1)


class FakeMethod:
    Params = FakeParams


class NeedyMethod:
    Params = NeedyParams


class FakeMethods(Registry):
    def resolve(self, name: str) -> Any:
        return {"sve": FakeMethod, "heads_only": FakeMethod, "needy": NeedyMethod}[name]


@pytest.fixture
def fake_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "sve_cli.errors:SveError"  # any module that is there; resolve() never looks at it
    registry = FakeMethods("method", {"sve": entry, "heads_only": entry, "needy": entry})
    monkeypatch.setattr(loader, "METHODS", registry)
    monkeypatch.setattr(schema, "METHODS", registry)


@pytest.fixture
def good() -> str:
    return (
        "model: {name: some/model}\n"
        "data:\n  name: digits\n"
        "task: {name: image_classification}\n"
        "method:\n  name: sve\n"
        "train:\n  lr: 1e-3\n"
    )
