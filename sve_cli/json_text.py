"""JSON documents as this project writes them: indented, and without NaN, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """A value in which numbers that are not finite are None, at any depth; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_json(document: Any) -> str:
    """The document's text; numbers that are not finite become null."""
    return json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
