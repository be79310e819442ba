"""Writing slacks into a gate file: whatever else is in it, comments included, stays as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from sve_cli.errors import SveError
from sve_cli.gate.spec import GateFile, GateSpec, parse_gates

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def new_gate_file(slacks: Mapping[str, float], comments: Sequence[str]) -> str:
    """The text of a gate file that holds these slacks and nothing else."""
    lines = [f"# {line}" for comment in comments for line in comment.splitlines()]
    lines += ["# baseline: baseline.json  # made by: sve gate baseline RUN", "gates:"]
    return "\n".join([*lines, *(f"  {_gate(key, slack)}" for key, slack in slacks.items())]) + "\n"


def with_slacks(text: str, slacks: Mapping[str, float], source: str) -> str:
    """The text of a gate file with these slacks; gates that are new stand first.

    Raises:
        GateError: it is no gate file.
        SveError: it is written in a way that cannot be edited.
    """
    before = parse_gates(text, source)
    # The text was checked: no tags and no anchors. `compose` builds nodes and nothing else.
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    gates = _entries(root)["gates"]
    present = _entries(gates)
    edits: list[tuple[int, int, str]] = []
    new = [(key, slack) for key, slack in slacks.items() if key not in present]
    if new:
        at, after = _front(gates)
        edits.append((at, at, "".join(_gate(key, slack) + after for key, slack in new)))
    for key, slack in slacks.items():
        if key not in present:
            continue
        old = _entries(present[key]).get("slack")
        if old is not None:
            edits.append((old.start_mark.index, old.end_mark.index, _number(slack)))
        else:
            at, after = _front(present[key])
            edits.append((at, at, f"slack: {_number(slack)}{after}"))
    for start, end, piece in sorted(edits, reverse=True):
        text = text[:start] + piece + text[end:]
    if parse_gates(text, source) != _expected(before, slacks):
        raise SveError(f"The gate file '{source}' cannot be edited as it is written.", "Write the slack into it by hand.")
    return text


def _entries(node: yaml.Node | None) -> dict[str, yaml.Node]:
    assert isinstance(node, yaml.MappingNode)
    return {key.value: value for key, value in node.value}


def _front(mapping: yaml.Node) -> tuple[int, str]:
    """Where a new first entry of a mapping is written, and what follows it."""
    assert isinstance(mapping, yaml.MappingNode)
    start = mapping.start_mark
    return (start.index + 1, ", ") if mapping.flow_style else (start.index, "\n" + " " * start.column)


def _expected(before: GateFile, slacks: Mapping[str, float]) -> GateFile:
    gates = dict(before.gates) | {key: replace(before.gates.get(key, GateSpec()), slack=slack) for key, slack in slacks.items()}
    return replace(before, gates=gates)


def _gate(key: str, slack: float) -> str:
    name = key if _PLAIN.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{name}: {{slack: {_number(slack)}}}"


def _number(value: float) -> str:
    return f"{value:.12g}" if value else "0.0"
