"""Recipes: what a run depends on, loaded strictly. Imports no torch; a method is imported when a recipe names it."""

from sve_cli.recipe.library import recipe_names, recipe_path, recipe_text
from sve_cli.recipe.loader import LoadedRecipe, digest, learning_rate, load_recipe, load_recipe_text, resolve_dict, to_yaml
from sve_cli.recipe.spec import DataSpec, EvaluateSpec, MethodSpec, ModelSpec, Recipe, SplitSpec, TaskSpec, TrainSpec

__all__ = [
    "DataSpec",
    "EvaluateSpec",
    "LoadedRecipe",
    "MethodSpec",
    "ModelSpec",
    "Recipe",
    "SplitSpec",
    "TaskSpec",
    "TrainSpec",
    "digest",
    "learning_rate",
    "load_recipe",
    "load_recipe_text",
    "recipe_names",
    "recipe_path",
    "recipe_text",
    "resolve_dict",
    "to_yaml",
]
