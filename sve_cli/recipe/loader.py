"""Strict loading: every problem of a recipe is found in one pass and reported with its file, line and key path."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from sve_cli.errors import SveError
from sve_cli.recipe.library import recipe_path
from sve_cli.recipe.reader import Reader, shown
from sve_cli.recipe.spec import Recipe
from sve_cli.recipe.yaml_nodes import UNUSABLE, Node, Place, Problem, from_python, parse_yaml, plain_scalar, report
from sve_cli.registry import METHOD_ALIASES, METHODS, ONE_NETWORK, OOD_SCORES, REFUSED_TASKS, TASKS, nearest

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, the short name for its runs, and the file it came from."""

    recipe: Recipe
    name: str
    source: str


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe file (a path wins) or a shipped recipe by name, with `key.path=value` overrides.

    Raises:
        SveError: there is no such file or recipe, or it cannot be read.
        RecipeError: everything that is wrong with it.
    """
    path = Path(path_or_name)
    if not os.path.isfile(path):  # pathlib's own fails where a name is too long
        if os.path.isdir(path) and (path.suffix or len(path.parts) > 1):
            raise SveError(f"'{path_or_name}' is a folder, not a recipe file.", "Name the .yaml file in it.")
        path = recipe_path(path_or_name)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise SveError(f"Cannot read the recipe '{path}' ({error.strerror}).") from error
    if size > MAX_BYTES:
        raise SveError(f"'{path}' is not a recipe: it has {size:,} bytes.", f"A recipe has at most {MAX_BYTES:,}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = Place(str(path), data.count(b"\n", 0, error.start) + 1)
        raise report([Problem(place, "", "the file is not UTF-8 text", "save it as UTF-8")]) from error
    return LoadedRecipe(load_recipe_text(text, str(path), overrides), path.stem, str(path))


def load_recipe_text(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from YAML text; `source` names it in problems.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    root, problems = parse_yaml(text, source)
    if root is None:
        raise report(problems)
    return _resolve(root, problems, overrides)


def resolve_dict(values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from plain Python values; `source` names it in problems.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    return _resolve(from_python(dict(values), Place(source)), [], overrides)


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every key written out; loading it gives an equal recipe."""
    return yaml.dump(asdict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def digest(recipe: Recipe) -> str:
    """sha256 (hex) of the recipe's canonical JSON: equal recipes, equal digests, however they were written."""
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True, allow_nan=False).encode()).hexdigest()


def learning_rate(recipe: Recipe) -> float:
    """The rate of the method's own parameters: the recipe's, else the method's default."""
    if recipe.train.lr is not None:
        return recipe.train.lr
    method = METHODS.resolve(recipe.method.name)
    return float(method.default_lr(method.Params(**recipe.method.params)))


class _Dumper(yaml.SafeDumper):
    """Quotes text that this loader, which is not PyYAML's, would read as something else (`1e-3`)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if plain_scalar(text, Place("")).kind == "text" else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _resolve(root: Node, problems: list[Problem], overrides: Sequence[str]) -> Recipe:
    if root.kind == "refused":
        raise report(problems)
    if root.kind != "mapping":
        raise report([*problems, Problem(root.place, "", f"a recipe is a mapping of keys, not {shown(root)}", "write 'model: …'")])
    reader = Reader(problems)
    _switch_method(root, overrides)
    for override in overrides:
        _apply_override(reader, root, override)
    _expand_alias(reader, root)
    values = reader.section(Recipe, root, "")
    params_class, params = _check_method(reader, root, values)
    _check_across(reader, root, values)
    if reader.problems:
        raise report(reader.problems)
    recipe: Recipe = _build(Recipe, values)
    data = recipe.data
    every = list(dict.fromkeys([*data.ood, *data.ood_near, *data.ood_far]))  # the groups only say which is which
    method = replace(recipe.method, params=asdict(_build(params_class, params)))
    return replace(recipe, data=replace(data, ood=every), method=method)


def _build(cls: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    nested = {k: _build(hints[k], v) if is_dataclass(hints[k]) and isinstance(v, dict) else v for k, v in values.items()}
    return cls(**nested)


def _child(node: Node | None, path: str) -> Node | None:
    """The node at a key path, or None."""
    for key in path.split("."):
        node = node.entries.get(key) if node else None
    return node


def _apply_override(reader: Reader, root: Node, override: str) -> None:
    """Write one `key.path=value` into the tree. The value is a plain scalar, or quoted or flow YAML."""
    place = Place(f"override '{override}'")
    path, equals, text = override.partition("=")
    keys, text = path.strip().split("."), text.strip()
    if UNUSABLE.search(override):
        reader.problems.append(Problem(Place(f"override {override!a}"), "", "holds a NUL character or half a surrogate pair"))
        return
    if not equals or not all(keys):
        reader.problems.append(Problem(place, "", "cannot be read", "write key.path=value, like train.lr=1e-3"))
        return
    if text[:1] in tuple("[{\"'"):
        value, found = parse_yaml(text, place.source, numbered=False)
        reader.problems += found
        if value is None:
            return
    else:
        value = plain_scalar(text, place)
    node = root
    for depth, key in enumerate(keys[:-1], start=1):
        inner = node.entries.setdefault(key, Node("mapping", {}, place))
        if inner.kind == "null":
            inner.kind, inner.value = "mapping", {}
        if inner.kind != "mapping":
            reader.problems.append(Problem(place, ".".join(keys[:depth]), f"is {shown(inner)}, not a section"))
            return
        node = inner
    node.entries[keys[-1]] = value


def _switch_method(root: Node, overrides: Sequence[str]) -> None:
    """`method.name=other` on the command line keeps data, task and schedule, and drops what suits the file's method only.

    That is its parameters, its weight decay and learning rates (not the head's: all methods have heads) and, for a method that
    is one network or from one, the number of members. An alias is its method with another number of members.
    """
    chosen = [text.strip(" \"'") for path, _, text in (o.partition("=") for o in overrides) if path.strip() == "method.name"]
    method, name, train = _child(root, "method"), _child(root, "method.name"), _child(root, "train")
    if not chosen or method is None or name is None or name.kind != "text" or chosen[-1] == name.value:
        return
    (new, fixed), (old, _) = (METHOD_ALIASES.get(n, (n, {})) for n in (chosen[-1], str(name.value)))
    if new in ONE_NETWORK or old in ONE_NETWORK or "members" in fixed:
        method.entries.pop("members", None)
    if new == old:
        return
    method.entries.pop("params", None)
    for key in ("lr", "bias_lr", "weight_decay"):
        if train is not None:
            train.entries.pop(key, None)


def _expand_alias(reader: Reader, root: Node) -> None:
    """Replace a method alias by the method and settings it stands for; a different value is a problem."""
    method, name = _child(root, "method"), _child(root, "method.name")
    if method is not None and name is not None and name.value in ONE_NETWORK and "members" not in method.entries:
        method.entries["members"] = from_python(1, name.place)
    if method is None or name is None or name.kind != "text" or name.value not in METHOD_ALIASES:
        return
    alias, (target, fixed) = name.value, METHOD_ALIASES[name.value]
    method.entries["name"] = Node("text", target, name.place, target)
    for key, value in fixed.items():
        given, wanted = method.entries.get(key), from_python(value, name.place)
        if given is not None and (given.kind, given.value) != (wanted.kind, wanted.value):
            what = f"method '{alias}' fixes this at {wanted.text}, found {shown(given)}"
            reader.problem(given, f"method.{key}", what, f"leave it out, or use method '{target}'")
        method.entries[key] = wanted


def _check_method(reader: Reader, root: Node, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read `method.params` by the method's own declaration: (its Params class, the values)."""
    name = values.get("method", {}).get("name")
    if name is None:
        return None, {}
    if name not in METHODS:
        place = _child(root, "method.name") or root
        reader.problem(place, "method.name", f"unknown method '{name}'", nearest(name, [*METHODS, *METHOD_ALIASES]))
        return None, {}
    params_class = METHODS.resolve(name).Params
    node = _child(root, "method.params") or Node("mapping", {}, (_child(root, "method") or root).place)
    return params_class, reader.section(params_class, node, "method.params")


def _check_across(reader: Reader, root: Node, values: dict[str, Any]) -> None:
    """What types and ranges cannot say."""

    def problem(path: str, what: str, instead: str = "") -> None:
        node = root
        for key in re.findall(r"[^.\[\]]+", path):
            inner = node.items[int(key)] if node.kind == "list" else node.entries.get(key)
            node = inner or node
        reader.problem(node, path, what, instead)

    task = values.get("task", {}).get("name")
    if task in REFUSED_TASKS:
        problem("task.name", f"{task} is refused: sve is for classification", f"one of {', '.join(TASKS)}")
    elif task is not None and task not in TASKS:
        problem("task.name", f"unknown task '{task}'", nearest(task, list(TASKS)))
    train = values.get("train", {})
    batch, parts = train.get("batch_size"), train.get("accumulation")
    if batch and parts and batch % parts:
        problem("train.accumulation", f"{parts} does not divide batch_size {batch}", "choose a divisor")
    betas = train.get("betas")
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        problem("train.betas", "must be two numbers from 0 to below 1", "like [0.9, 0.999]")
    for i, name in enumerate(values.get("evaluate", {}).get("ood_scores", [])):
        if name not in OOD_SCORES:
            problem(f"evaluate.ood_scores[{i}]", f"unknown OOD score '{name}'", nearest(name, list(OOD_SCORES)))
    decision = values.get("evaluate", {}).get("ood_decision")
    if decision is not None and decision not in OOD_SCORES:
        problem("evaluate.ood_decision", f"unknown OOD score '{decision}'", nearest(decision, list(OOD_SCORES)))
    data = values.get("data", {})
    for key in ("ood", "ood_near", "ood_far"):
        for i, name in enumerate(data.get(key, [])):
            if not name.strip():
                problem(f"data.{key}[{i}]", "must not be empty", "a name, a path, or 'set:split'")
            elif key == "ood_far" and name in data.get("ood_near", []):
                problem(f"data.{key}[{i}]", f"'{name}' is also in data.ood_near", "name it in one of them")
    method = values.get("method", {})
    for key in ("targets", "exclude"):
        patterns = method.get(key, [])
        for i, pattern in enumerate([patterns] if isinstance(patterns, str) else patterns):
            if pattern.startswith("re:") and (fault := _regex_fault(pattern[3:])):
                where = f"method.{key}" if isinstance(patterns, str) else f"method.{key}[{i}]"
                problem(where, f"'{pattern}' is not a regular expression: {fault}")


def _regex_fault(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""
