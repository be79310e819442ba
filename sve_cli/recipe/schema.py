"""The JSON schema of a recipe (for editors) and `docs/recipes.md`, both from the declarations that the loader reads."""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from importlib.util import find_spec
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sve_cli.recipe.spec import Recipe
from sve_cli.registry import METHOD_ALIASES, METHODS, OOD_SCORES, TASKS

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
_RANGES = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum"}


@dataclass(frozen=True)
class _Row:
    """One key of the reference."""

    path: str
    type: str
    default: str
    range: str
    doc: str


def method_params() -> dict[str, type]:
    """Method name -> its `Params`. A registered method whose module is not installed is left out."""
    return {name: METHODS.resolve(name).Params for name in METHODS if find_spec(METHODS[name].partition(":")[0])}


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file. Accepts what the loader accepts, but for checks across keys."""
    schema = _object(Recipe)
    sections = schema["properties"]
    sections["task"]["properties"]["name"]["enum"] = list(TASKS)
    rate = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    sections["train"]["properties"]["betas"] |= {"minItems": 2, "maxItems": 2, "items": rate}
    sections["evaluate"]["properties"]["ood_scores"]["items"]["enum"] = list(OOD_SCORES)
    sections["evaluate"]["properties"]["ood_decision"] |= {"enum": [*OOD_SCORES, None]}
    for key in ("ood", "ood_near", "ood_far"):
        sections["data"]["properties"][key]["items"] |= {"pattern": r"\S"}
    method = sections["method"]
    method["properties"]["name"]["enum"] = [*METHODS, *METHOD_ALIASES]
    params = {name: _object(cls) for name, cls in method_params().items()}
    targets: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in METHODS} | METHOD_ALIASES
    method["allOf"] = [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {
                "properties": {key: {"const": value} for key, value in fixed.items()} | {"params": params[target]},
                **({"required": ["params"]} if "required" in params[target] else {}),
            },
        }
        for name, (target, fixed) in targets.items()
        if target in params
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sve recipe", **schema}


def recipes_reference() -> str:
    """`docs/recipes.md`: every key with its type, default, range and meaning."""
    lines = [
        "# Recipes",
        "",
        "A recipe is one YAML file. Everything in it is checked before any work: an unknown key, a wrong type or a value",
        "out of range is reported with file, line and key path, all at once. `sve train recipe.yaml train.lr=1e-3` changes",
        "a key from the command line. Numbers follow YAML 1.2 (`1e-3` is a number); only `true` and `false` are booleans.",
        "This page is generated from the declarations (`make docs`).",
        "",
    ]
    top = [f for f in fields(Recipe) if not is_dataclass(get_type_hints(Recipe)[f.name])]
    lines += ["## Top level", "", *_table([_row(f, get_type_hints(Recipe)[f.name], "") for f in top])]
    for name, hint in get_type_hints(Recipe).items():
        if is_dataclass(hint) and isinstance(hint, type):
            lines += [f"## {name}", "", f"{hint.__doc__}", "", *_table(_rows(hint, f"{name}."))]
    for name, cls in method_params().items():
        lines += [f"## method.params of {name}", ""]
        lines += _table(_rows(cls, "")) if fields(cls) else ["None.", ""]
    lines += ["## Method aliases", "", "| alias | stands for |", "|---|---|"]
    for alias, (target, fixed) in METHOD_ALIASES.items():
        lines.append(f"| `{alias}` | `{target}` with {', '.join(f'`{key}: {value}`' for key, value in fixed.items())} |")
    return "\n".join(lines) + "\n"


def _object(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    known = [f for f in fields(cls) if f.init]
    required = [f.name for f in known if _default(f) is MISSING]
    schema: dict[str, Any] = {
        # An empty section ("train:" with nothing below) is null; it is fine when nothing in it is required.
        "type": "object" if required else ["object", "null"],
        "additionalProperties": False,
        "properties": {f.name: _property(f, hints[f.name]) for f in known},
    }
    return schema | ({"required": required} if required else {})


def _property(key: Field[Any], hint: Any) -> dict[str, Any]:
    schema = _type(hint, {word: key.metadata[name] for name, word in _RANGES.items() if key.metadata.get(name) is not None})
    if text := key.metadata.get("doc"):
        schema["description"] = text
    default = _default(key)
    if default is MISSING:
        if hint is str:
            schema["pattern"] = r"\S"  # a required text is never empty
    else:
        schema["default"] = asdict(default) if is_dataclass(default) and not isinstance(default, type) else default
    return schema


def _type(hint: Any, limits: dict[str, float]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and is_dataclass(hint):
        return _object(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(arg, limits) for arg in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list:
        return {"type": "array", "items": _type(args[0], limits)}
    if origin is dict:
        return {"type": ["object", "null"]}
    return {"type": _TYPES[hint]} | (limits if hint in (int, float) else {})


def _default(key: Field[Any]) -> Any:
    return key.default_factory() if key.default_factory is not MISSING else key.default


def _rows(cls: type, prefix: str) -> list[_Row]:
    """One row a key; nested sections are flattened to their key paths."""
    rows: list[_Row] = []
    for key in fields(cls):
        hint = get_type_hints(cls)[key.name]
        if isinstance(hint, type) and is_dataclass(hint):
            rows += _rows(hint, f"{prefix}{key.name}.")
        else:
            rows.append(_row(key, hint, prefix))
    return rows


def _row(key: Field[Any], hint: Any, prefix: str) -> _Row:
    low, high, above = (key.metadata.get(name) for name in ("low", "high", "above"))
    limits = [f"{sign} {bound:g}" for sign, bound in (("≥", low), (">", above), ("≤", high)) if bound is not None]
    default = _default(key)
    shown = "required" if default is MISSING else f"`{json.dumps(default, ensure_ascii=False)}`"
    return _Row(f"{prefix}{key.name}", _type_name(hint), shown, ", ".join(limits), key.metadata.get("doc", ""))


def _type_name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args)
    if origin is list:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null"}[hint]


def _table(rows: list[_Row]) -> list[str]:
    cells = [[f"`{row.path}`", row.type, row.default, row.range, row.doc] for row in rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return ["| key | type | default | range | meaning |", "|---|---|---|---|---|", *lines, ""]
