"""JSON documents of a benchmark: without folders of this machine, and read with every field checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sve_cli.errors import SveError

# '/home/me/x.csv' at the start of a word; not 'and/or', 'https://host/x', './x' or '</b>'.
_FOLDERS = re.compile(r"(?<![\w.~/<>)\]}*%-])/(?!/)(?:[^\s/'\",;:=\[\](){}]+/)*[^\s/'\",;:=\[\](){}]+/?")


def without_folders(value: Any, known: Sequence[str] = ()) -> Any:
    """A value with every absolute path in it (keys of mappings included) cut to its last part: folders say where, not what.

    Args:
        known: absolute paths to cut wherever they stand; only these may hold spaces.
    """
    if isinstance(value, str):
        for path in sorted(known, key=len, reverse=True):
            value = value.replace(path, Path(path).name)
        if value.startswith("/") and "," not in value:  # a path and nothing else: it may hold spaces
            value = Path(value).name
        return _FOLDERS.sub(lambda found: Path(found.group()).name, value)
    if isinstance(value, Mapping):
        return {without_folders(k, known): without_folders(v, known) for k, v in value.items()}
    return [without_folders(v, known) for v in value] if isinstance(value, (list, tuple)) else value


def read_document(path: Path, schema: str, kind: type[Any]) -> dict[str, Any]:
    """The values of a stored dataclass `kind`.

    Raises:
        SveError: the file is missing, damaged, or of another schema.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SveError(f"Cannot read '{path}' ({error}).", "Remove it, and it will be measured again.") from error
    if not isinstance(raw, dict) or raw.get("schema") != schema:
        raise SveError(f"'{path}' is not of schema {schema}.", "Give the benchmark a folder of its own (--out).")
    return checked(raw, path, kind)


def checked(raw: Any, path: Path, kind: type[Any]) -> dict[str, Any]:
    """The values that the dataclass `kind` knows, all there and of their types; what only a newer version knows is left out.

    Raises:
        SveError: something is missing or of another type.
    """
    if not isinstance(raw, dict):
        raise damaged(path, kind.__name__)
    hints = get_type_hints(kind)
    for each in fields(kind):
        optional = each.default is not MISSING or each.default_factory is not MISSING
        if not (_fits(raw[each.name], hints[each.name]) if each.name in raw else optional):
            raise damaged(path, each.name)
    return {each.name: raw[each.name] for each in fields(kind) if each.name in raw}


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    kind = get_origin(hint) or hint
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


def damaged(path: Path, key: str) -> SveError:
    """What is said of a file whose `key` cannot be used."""
    return SveError(
        f"'{path}' is damaged: {key} is missing or is not what it should be.", "Remove it, and it will be measured again."
    )
