"""Nodes to typed values, by the annotations and ranges of a dataclass; every problem is collected, none raised."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sve_cli.recipe.spec import Recipe
from sve_cli.recipe.yaml_nodes import Node, Problem, plain_scalar
from sve_cli.registry import nearest

BAD = object()  # stands for a value that could not be read; its problem is recorded

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
# What transformers, Lightning and timm call a key of these recipes.
_SYNONYMS = {
    "learning_rate": "lr", "num_epochs": "epochs", "num_train_epochs": "epochs", "max_epochs": "epochs",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size", "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation", "accumulate_grad_batches": "accumulation", "warmup_ratio": "warmup",
    "warmup_steps": "warmup", "lr_scheduler_type": "schedule", "scheduler": "schedule", "sched": "schedule",
    "max_grad_norm": "clip", "gradient_clip_val": "clip", "clip_grad": "clip", "grad_clip": "clip",
    "label_smoothing_factor": "label_smoothing", "smoothing": "label_smoothing", "gradient_checkpointing": "save_memory",
    "fp16": "precision", "bf16": "precision", "dtype": "precision", "model_name_or_path": "name", "model_name": "name",
    "path": "name", "dataset_name": "name", "max_seq_length": "max_length", "img_size": "image_size", "input_size": "image_size",
    "target_modules": "targets", "exclude_modules": "exclude", "num_members": "members", "n_members": "members",
    "ensemble_size": "members", "num_classes": "classes", "num_labels": "classes", "max_train_samples": "limit",
    "attn_implementation": "attention", "n_bins": "bins", "num_bins": "bins",
}  # fmt: skip
_KINDS = {str: ("text",), int: ("int",), float: ("float", "int"), bool: ("bool",)}


def shown(node: Node) -> str:
    if node.kind in ("list", "mapping"):
        return f"a {node.kind}"
    if node.kind != "text":
        return node.text or "nothing"
    return f"'{node.text}'" if len(node.text) <= 60 else f"'{node.text[:60]}…'"


@dataclass
class Reader:
    """Reads nodes by type annotations and collects what is wrong."""

    problems: list[Problem]

    def problem(self, node: Node, path: str, what: str, instead: str = "") -> object:
        self.problems.append(Problem(node.place, path, what, instead))
        return BAD

    def section(self, cls: type, node: Node, path: str) -> dict[str, Any]:
        """The keys of a dataclass that could be read, defaults filled; nested dataclasses are dictionaries too."""
        hints = get_type_hints(cls)
        known: dict[str, Field[Any]] = {f.name: f for f in fields(cls) if f.init}
        prefix = f"{path}." if path else ""
        values: dict[str, Any] = {}
        for key, item in node.entries.items():
            if key not in known:
                self.problem(item, prefix + key, "unknown key", _where_it_belongs(key, list(known)))
        for name, key_field in known.items():
            required = key_field.default is MISSING and key_field.default_factory is MISSING
            if name in node.entries:
                value = self.value(hints[name], node.entries[name], prefix + name, key_field.metadata)
                if required and hints[name] is str and isinstance(value, str) and not value.strip():
                    value = self.problem(node.entries[name], prefix + name, "must not be empty", key_field.metadata.get("doc", ""))
            elif required:
                value = self.problem(node, prefix + name, "missing", key_field.metadata.get("doc", ""))
            else:
                value = _default(key_field)
            if value is not BAD:
                values[name] = value
        return values

    def value(self, hint: Any, node: Node, path: str, limits: Mapping[str, Any]) -> Any:
        """The value of a node by its annotation, or BAD."""
        if node.kind == "refused":
            return BAD
        if hint is Any:
            return node.plain()
        origin, args = get_origin(hint), get_args(hint)
        if is_dataclass(hint) or origin is dict:
            if node.kind not in ("mapping", "null"):
                return self.problem(node, path, f"expected a section, found {shown(node)}", "write its keys below, indented")
            return self.section(hint, node, path) if isinstance(hint, type) and is_dataclass(hint) else (node.plain() or {})
        if origin in (Union, types.UnionType):
            return self.union(args, node, path, limits)
        if origin is Literal:
            return self.choice(args, node, path)
        if origin is list:
            if node.kind != "list":
                instead = f"write [{node.text}]" if node.text else "write [a, b]"
                return self.problem(node, path, f"expected a list, found {shown(node)}", instead)
            items = [self.value(args[0], item, f"{path}[{i}]", limits) for i, item in enumerate(node.items)]
            return BAD if BAD in items else items
        return self.scalar(hint, node, path, limits)

    def union(self, args: tuple[Any, ...], node: Node, path: str, limits: Mapping[str, Any]) -> Any:
        if node.kind == "null" and types.NoneType in args:
            return None
        options = [arg for arg in args if arg is not types.NoneType]
        lists = [arg for arg in options if get_origin(arg) is list]
        if lists and (node.kind == "list" or len(options) == 1):
            return self.value(lists[0], node, path, limits)
        scalars = [arg for arg in options if get_origin(arg) is not list]
        matching = [arg for arg in scalars if node.kind in _KINDS.get(arg, ())]
        return self.value((matching or scalars)[0], node, path, limits)

    def choice(self, args: tuple[Any, ...], node: Node, path: str) -> Any:
        value = node.plain()
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        names = [str(arg) for arg in args]
        close = nearest(node.text, names)
        instead = close if close.startswith("Did") else ""
        return self.problem(node, path, f"expected one of {', '.join(names)}, found {shown(node)}", instead)

    def scalar(self, hint: Any, node: Node, path: str, limits: Mapping[str, Any]) -> Any:
        if hint not in _KINDS:
            raise TypeError(f"{path}: the loader does not know the annotation {hint}")
        if node.kind not in _KINDS[hint]:
            return self.problem(node, path, f"expected {_NAMES[hint]}, found {shown(node)}", _instead(hint, node))
        if hint is float and not abs(node.value) < 1e300:  # nan and inf too, and whole numbers beyond float
            return self.problem(node, path, f"expected a finite number, found {shown(node)}")
        value = hint(node.value)
        if hint in (int, float) and (broken := _out_of_range(value, limits)):
            return self.problem(node, path, f"must be {broken}, found {shown(node)}")
        return value


def _default(key_field: Field[Any]) -> Any:
    value = key_field.default_factory() if key_field.default_factory is not MISSING else key_field.default
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value


def _out_of_range(value: float, limits: Mapping[str, Any]) -> str:
    """What the value must be, if it is not."""
    low, high, above = (limits.get(name) for name in ("low", "high", "above"))
    wanted = [f"at least {low:g}"] if low is not None else []
    wanted += [f"greater than {above:g}"] if above is not None else []
    wanted += [f"at most {high:g}"] if high is not None else []
    inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    return "" if inside else " and ".join(wanted)


def _instead(hint: Any, node: Node) -> str:
    """What to write, when it can be guessed."""
    if hint is str and node.kind in ("bool", "int", "float"):
        return f"write '{node.text}' in quotes"
    if hint is bool and node.text.lower() in ("yes", "on", "y", "no", "off", "n"):
        return "write true" if node.text.lower() in ("yes", "on", "y") else "write false"
    if hint is int and node.kind == "float" and math.isfinite(node.value) and node.value.is_integer():
        return f"write {int(node.value)}"
    if hint is not str and node.kind == "text" and plain_scalar(node.text, node.place).kind in _KINDS[hint]:
        return f"write {node.text} without quotes"
    return ""


def _where_it_belongs(key: str, known: list[str]) -> str:
    """The nearest valid key; what other trainers' key is called here; or the section that a key is missing from."""
    close = nearest(key, known)
    if close.startswith("Did"):
        return close
    other = difflib.get_close_matches(key, _SYNONYMS, n=1, cutoff=0.8)
    meant = _SYNONYMS[other[0]] if other else key
    if meant in known:
        return f"Did you mean '{meant}'?"
    hints = get_type_hints(Recipe)
    homes = [f"{name}.{meant}" for name, hint in hints.items() if is_dataclass(hint) and meant in {f.name for f in fields(hint)}]
    return f"Did you mean '{homes[0]}'?" if homes else close
