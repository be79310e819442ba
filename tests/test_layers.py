"""Imports point down the layers of docs/architecture.md, and rooms of one layer do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import sve_cli

PACKAGE = Path(sve_cli.__file__).parent

# Top first. A room is a module or a package directly below sve_cli; inside a room everything may import everything.
LAYERS = [
    {"cli"},
    {"commands"},
    {"workflows", "console"},
    {"training", "prediction", "scoring", "decisions", "diagnosis", "comparison", "gate", "certify", "plan"},
    {"methods", "tasks", "data", "posthoc", "metrics", "ood", "export", "render", "corruptions"},
    {"ensemble", "diversity", "certified"},
    {"linear_forms", "factors", "backbone", "rundir", "foreign"},
    {"recipe", "predictions", "report", "benchmark", "findings", "verdict", "shift", "statistics", "samples"},
    {"registry", "errors", "json_text", "allocator", "filemode", "hub"},
]
DEPTH = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}

# registry.py raises the errors of errors.py: the one pair inside a layer.
ALLOWED = {("registry", "errors")}
# These are read before anything heavy may be loaded.
LIGHT = {"recipe", "registry", "errors", "predictions", "report"}
HEAVY = {"torch", "torchvision", "timm", "transformers", "datasets", "sklearn"}


def imported_names(path: Path, package: list[str]) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import, also inside functions and under TYPE_CHECKING.

    `from a import b` gives both `a` and `a.b`, because b may be a module.
    """
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return names


def violations(root: Path) -> list[str]:
    """What breaks the layers in the package folder `root`."""
    found: list[str] = []
    rooms = {path.stem for path in root.glob("*.py")} | {path.parent.name for path in root.glob("*/*.py")}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0]
        if room in ("__init__", "__main__"):
            continue
        if room not in DEPTH:
            found.append(f"{path.relative_to(root)}: '{room}' is in no layer")
            continue
        for line, name in imported_names(path, [root.name, *parts[:-1]]):
            where = f"{path.relative_to(root)}:{line}"
            top, *below = name.split(".")
            if room in LIGHT and top in HEAVY:
                found.append(f"{where}: {room} imports {top}")
            if top != root.name or not below or below[0] not in rooms or below[0] == room:
                continue
            if below[0] not in DEPTH:
                found.append(f"{where}: {room} imports {below[0]}, which is in no layer")
            elif DEPTH[below[0]] <= DEPTH[room] and (room, below[0]) not in ALLOWED:
                found.append(f"{where}: {room} imports {below[0]}, which is not below it")
    return found


def test_imports_point_down() -> None:
    assert not violations(PACKAGE), "\n".join(violations(PACKAGE))


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_made_up_violations_are_found(tmp_path: Path) -> None:
    root = tmp_path / "fake"
    write(
        root,
        errors="",
        registry="from fake.errors import SveError",
        report="import numpy",
        ensemble="",
        data__sources="from .tables import read\nfrom ..ensemble import Ensemble\nfrom fake import report",
        data__tables="import fake.errors",
        cli="from fake import commands",
        commands__train="def f():\n    import fake.data.tables",
    )
    assert violations(root) == []
    write(
        root,
        errors="def f():\n    import fake.registry",
        report="import torch",
        ensemble="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fake.data import sources",
        data__sources="from fake import tasks",
        tasks__head="from ..data.tables import read",
        training="from .prediction import predict",
        prediction="from fake.strange import x",
        strange="",
    )
    assert violations(root) == [
        "data/sources.py:1: data imports tasks, which is not below it",
        "ensemble.py:3: ensemble imports data, which is not below it",
        "errors.py:2: errors imports registry, which is not below it",
        "prediction.py:1: prediction imports strange, which is in no layer",
        "report.py:1: report imports torch",
        "strange.py: 'strange' is in no layer",
        "tasks/head.py:1: tasks imports data, which is not below it",
        "training.py:1: training imports prediction, which is not below it",
    ]
