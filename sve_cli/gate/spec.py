"""gates.yaml: what may get how much worse. Strict like a recipe: every fault is reported at once, with its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from sve_cli.errors import SveError
from sve_cli.recipe.reader import BAD, Reader, shown
from sve_cli.recipe.spec import doc
from sve_cli.recipe.yaml_nodes import Node, Problem, parse_yaml
from sve_cli.registry import nearest

Policy = Literal["fail", "warn", "pass"]


@dataclass(frozen=True)
class GateSpec:
    """One gated metric. Numbers are plain (0.02, not 2 %); its direction is the metric's own."""

    limit: float | None = doc("The value must not lie beyond this: above where lower is better, below where higher is.", None)
    slack: float | None = doc("How much worse than the baseline is allowed.", None, low=0.0)
    relative_slack: float | None = doc("The same as a share of the baseline's value; the larger of the two counts.", None, low=0.0)
    detect: float | None = doc("The worsening that must not pass unseen; by default the slack and a little more.", None, above=0.0)

    @property
    def compares(self) -> bool:
        """Whether it needs a baseline."""
        return self.slack is not None or self.relative_slack is not None


@dataclass(frozen=True)
class GateSettings:
    """How gates are judged."""

    baseline: str | None = doc("A baseline file, predictions, a run or a report; relative to this file.", None)
    on_missing_baseline: Policy | None = doc("What happens without a baseline: fail, warn or pass; null: an error.", None)
    on_missing_slice: Policy | None = doc("What happens where a slice is missing or too small; null: an error.", None)
    confidence: float = doc("Level of the intervals.", 0.95, above=0.5, high=0.999)
    share_level: bool = doc("Share 1 - confidence among all comparisons, so that more gates give no more false alarms.", True)
    bootstrap: int = doc("Bootstrap resamples behind each interval.", 2000, low=100)
    max_missing: float = doc("Largest share of the samples that may be missing on one side.", 0.05, low=0.0, high=1.0)
    seed: int = doc("Seed of the resamples.", 0, low=0)


@dataclass(frozen=True)
class GateFile:
    """Settings and the gates by report address. `source`: the file, "" for none."""

    settings: GateSettings
    gates: dict[str, GateSpec]
    source: str = ""


class GateError(SveError):
    """One or more faults of a gate file, all reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        ordered = sorted(problems, key=lambda p: p.place.line or 0)
        self.problems = [str(problem) for problem in ordered]
        count = f"{len(ordered)} problem{'s' if len(ordered) != 1 else ''} in the gate file"
        super().__init__(count + ":\n" + "\n".join(f"  {p}" for p in self.problems), "The keys are listed in docs/gates.md.")


def load_gates(path: Path) -> GateFile:
    """Read a gate file.

    Raises:
        GateError: everything that is wrong with it.
        SveError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SveError(f"Cannot read the gate file '{path}' ({why}).", "Write one; docs/gates.md has an example.") from error
    return parse_gates(text, str(path))


def parse_gates(text: str, source: str) -> GateFile:
    """Read the text of a gate file; `source` names it in messages.

    Raises:
        GateError: everything that is wrong with it.
    """
    root, problems = parse_yaml(text, source)
    if root is None:
        raise GateError(problems)
    reader = Reader(problems)
    if root.kind != "mapping":
        reader.problem(root, "", f"expected keys and values, found {shown(root)}", "write gates: and the metrics below it")
        raise GateError(reader.problems)
    values = _section(reader, GateSettings, root, "", ["gates"])
    gates = _gates(reader, root)
    if reader.problems:
        raise GateError(reader.problems)
    return GateFile(GateSettings(**values), gates, source)


def _section(reader: Reader, cls: type, node: Node, path: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a dataclass that are written in `node`; `others` are known too and read elsewhere."""
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    values = {}
    for key, item in node.entries.items():
        place = f"{path}.{key}" if path else key
        if key in known:
            value = reader.value(hints[key], item, place, known[key].metadata)
            if value is not BAD:
                values[key] = value
        elif key not in others:
            reader.problem(item, place, "unknown key", nearest(key, [*known, *others]))
    return values


def _gates(reader: Reader, root: Node) -> dict[str, GateSpec]:
    node = root.entries.get("gates")
    if node is None:
        reader.problem(root, "gates", "missing", "write gates: and below it a metric with what it allows")
        return {}
    if node.kind != "mapping" or not node.entries:
        if node.kind != "refused":
            reader.problem(node, "gates", f"expected metrics, found {shown(node)}", "for example ece_top1_w15: {slack: 0.0}")
        return {}
    found = {}
    for key, item in node.entries.items():
        path = f"gates.{key}"
        if item.kind != "mapping":
            if item.kind != "refused":
                reader.problem(item, path, f"expected a section, found {shown(item)}", "for example {slack: 0.0}")
            continue
        before = len(reader.problems)
        gate = GateSpec(**_section(reader, GateSpec, item, path))
        if len(reader.problems) == before:
            _usable(reader, item, path, gate)
        found[key] = gate
    return found


def _usable(reader: Reader, node: Node, path: str, gate: GateSpec) -> None:
    if gate.limit is None and not gate.compares:
        reader.problem(node, path, "allows nothing and forbids nothing", "write limit, slack or relative_slack")
    if gate.detect is not None and gate.slack is not None and gate.detect <= gate.slack:
        reader.problem(node, f"{path}.detect", f"must be greater than the slack of {gate.slack:g}, found {gate.detect:g}")
