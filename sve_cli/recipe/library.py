"""The recipes that come with the tool: `recipes/` in the repository, `sve_cli/recipes_data/` in a wheel."""

from __future__ import annotations

from pathlib import Path

from sve_cli.errors import SveError
from sve_cli.registry import nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder() -> Path:
    # An editable install runs from the repository, where the wheel's mapping does not exist.
    installed = _PACKAGE / "recipes_data"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        SveError: no shipped recipe has that name.
    """
    names = recipe_names()
    if name not in names:
        hint = nearest(name, names) if names else "No recipes were found beside the package: reinstall it."
        raise SveError(f"There is no recipe file '{name}' and no shipped recipe of that name.", hint)
    return _folder() / f"{name}.yaml"


def recipe_text(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        SveError: no shipped recipe has that name.
    """
    return recipe_path(name).read_text(encoding="utf-8")
