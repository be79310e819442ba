"""The learning rate of a recipe that names none: what docs/methods.md says of every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sve_cli.recipe import learning_rate
from sve_cli.recipe.loader import load_recipe_text
from sve_cli.registry import METHOD_ALIASES, METHODS

RATES = {
    "sve": 1e-2, "svf": 1e-2, "svfit": 1e-3, "single": 1e-4, "deep_ensemble": 1e-4, "snapshot": 1e-4, "mc_dropout": 1e-4,
    "lora_ensemble": 1e-3, "lora": 1e-3, "batch_ensemble": 1e-2, "sve_lora": 1e-2, "sve_band": 1e-2,
    "heads_only": None, "linear_probe": None,
}  # fmt: skip


def rate_of(method: str, **params: str) -> float:
    text = "model: {name: x}\ndata: {name: y}\ntask: {name: text_classification}\n"
    return learning_rate(load_recipe_text(f"{text}method: {{name: {method}, params: {params}}}\n", "recipe"))


def test_every_method_has_the_rate_that_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    said = {name: rate for name, rate in re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| (\S+) \|", page, re.MULTILINE)}
    assert said.keys() == RATES.keys() == {*METHODS, *METHOD_ALIASES}
    for method, rate in RATES.items():
        assert said[method] == "unused" if rate is None else rate_of(method) == float(said[method]) == rate, method


@pytest.mark.parametrize("method", ["sve", "svfit", "sve_lora", "sve_band"])
def test_the_rate_of_singular_values_follows_their_parametrisation(method: str) -> None:
    assert [rate_of(method, parametrisation=p) for p in ("absolute", "relative")] == [1e-3, 1e-2]
