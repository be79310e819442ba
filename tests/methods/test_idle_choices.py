"""Choices of `method.params` that do nothing beside the others are named."""

from __future__ import annotations

from typing import Any

import pytest

from sve_cli.methods.matrix import idle_choices
from sve_cli.registry import METHODS


@pytest.mark.parametrize(
    ("method", "given", "idle"),
    [
        ("sve", {"biases": "shared", "bias_init": 0.1}, "bias_init"),
        ("sve", {"biases": "frozen", "bias_init": 0.1}, "bias_init"),
        ("batch_ensemble", {"biases": "frozen", "bias_init": 0.1}, "bias_init"),
        ("sve", {"form": "factored", "sigma_grad_tokens": 0.5}, "sigma_grad_tokens"),
        ("sve_lora", {"form": "residual", "sigma_grad_tokens": 0.5}, "sigma_grad_tokens"),
        ("sve", {"widen_over": 0.9, "rank": 4}, "widen_over"),
        ("sve", {"widen_over": 0.9, "rank_start": 4}, None),
        ("sve", {"form": "materialised", "sigma_grad_tokens": 0.5}, None),
        ("sve", {"sigma_grad_tokens": 0.5}, None),
        ("sve", {"biases": "member", "bias_init": 0.1}, None),
        ("sve", {"biases": "shared"}, None),
    ],
)
def test_what_is_idle(method: str, given: dict[str, Any], idle: str | None) -> None:
    said = idle_choices(METHODS.resolve(method).Params(**given))
    assert [text.split()[0] for text in said] == ([f"method.params.{idle}"] if idle else [])


@pytest.mark.parametrize("method", list(METHODS))
def test_defaults_are_never_idle(method: str) -> None:
    assert idle_choices(METHODS.resolve(method).Params()) == []
