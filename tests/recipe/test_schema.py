"""The JSON schema and the reference page, against the loader they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from sve_cli.errors import RecipeError
from sve_cli.recipe import load_recipe, load_recipe_text, recipe_names, recipe_text, resolve_dict
from sve_cli.recipe.schema import recipe_schema, recipes_reference
from sve_cli.recipe.yaml_nodes import parse_yaml

ROOT = Path(__file__).parents[2]


def plain(text: str) -> Any:
    """A recipe as an editor's YAML 1.2 parser reads it."""
    root, _ = parse_yaml(text, "r.yaml")
    assert root is not None
    return root.plain()


@pytest.mark.usefixtures("fake_methods")
def test_the_schema_is_a_valid_schema_and_describes_every_key() -> None:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["train"]["properties"]["lr"]["description"].startswith("Learning rate")
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["model", "data", "task", "method"]


# One broken key each: the loader and the schema both say no.
BROKEN = {
    "train.lr": 0,
    "train.epochs": 1.5,
    "evaluate.temperature": "yes",
    "train.schedule": "cosin",
    "train.betas": [0.9],
    "train.precison": "auto",
    "evaluate.bins": 1,
    "evaluate.ood_scores": ["entrop"],
    "evaluate.confidence": 0.5,
    "data.ood": [""],
    "data.splits.trian": "x",
    "data.holdout": 0,
    "model.name": " ",
    "model.image_size": "big",
    "task.name": "regression",
    "method.name": "sfv",
    "method.members": 0,
    "method.targets": 3,
    "method.params.sigma_init": -1,
    "method.params.bogus": 1,
    "bogus": 1,
}


def changed(text: str, path: str, value: Any) -> Any:
    recipe = plain(text)
    *sections, key = path.split(".")
    inner = recipe
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    return recipe


@pytest.mark.usefixtures("fake_methods")
@pytest.mark.parametrize("path", BROKEN)
def test_schema_and_loader_refuse_the_same(path: str, good: str) -> None:
    recipe = changed(good, path, BROKEN[path])
    assert not Draft202012Validator(recipe_schema()).is_valid(recipe)
    with pytest.raises(RecipeError) as caught:
        resolve_dict(recipe, "dict")
    assert any(path in problem for problem in caught.value.problems)


@pytest.mark.usefixtures("fake_methods")
@pytest.mark.parametrize(
    ("path", "value"),
    [("train", None), ("train.lr", 1), ("method.targets", ["a", "re:b"]), ("method.last_blocks", None), ("method.params.rank", 4)],
)
def test_schema_and_loader_accept_the_same(path: str, value: Any, good: str) -> None:
    recipe = changed(good, path, value)
    assert list(Draft202012Validator(recipe_schema()).iter_errors(recipe)) == []
    assert resolve_dict(recipe, "dict").seed >= 0


@pytest.mark.usefixtures("fake_methods")
def test_aliases_and_required_params_in_the_schema(good: str) -> None:
    validator = Draft202012Validator(recipe_schema())
    alias = changed(good, "method.name", "svf")
    assert validator.is_valid(alias)
    alias["method"]["members"] = 3
    assert not validator.is_valid(alias)
    assert not validator.is_valid(changed(good, "method.name", "needy"))


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_validate(name: str) -> None:
    assert load_recipe(name).name == name
    Draft202012Validator(recipe_schema()).validate(plain(recipe_text(name)))
    assert isinstance(yaml.safe_load(recipe_text(name)), dict)


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == recipes_reference(), "docs/recipes.md is out of date: run 'make docs'"


def test_every_real_method_loads_with_its_defaults(good: str) -> None:
    recipe = load_recipe_text(good, "r.yaml")
    assert {"sigma_init", "parametrisation", "biases"} <= set(recipe.method.params)
