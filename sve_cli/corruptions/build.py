"""Corruptions by their names, by their groups, or all that suit a kind of input."""

from __future__ import annotations

from collections.abc import Sequence

from sve_cli.corruptions.base import SEVERITIES, Corruption
from sve_cli.errors import SveError
from sve_cli.registry import CORRUPTIONS, nearest

ALL, NONE = "all", "none"


def choose(names: Sequence[str], modality: str) -> list[Corruption]:
    """The corruptions that `names` mean for a run's inputs, in the order of the registry and each once.

    Args:
        names: of corruptions, of groups, "all" (all that suit the inputs), or "none".
        modality: "image", "text" or "multiple_choice" (whose questions are texts).

    Raises:
        SveError: an unknown name, or a corruption of another kind of input.
    """
    kind = "image" if modality == "image" else "text"
    known: dict[str, Corruption] = {name: CORRUPTIONS.resolve(name) for name in CORRUPTIONS}
    wanted: set[str] = set()
    for name in names:
        found = [c for c in known.values() if name in (c.name, c.group)]
        if name == ALL:
            found = [c for c in known.values() if c.modality == kind]
        elif name == NONE:
            if len(names) > 1:
                raise SveError("'none' stands among other corruptions.", "Name it alone, or leave it out.")
        elif not found:
            suit = {word for c in known.values() if c.modality == kind for word in (c.name, c.group)}
            raise SveError(f"Unknown corruption '{name}'.", nearest(name, [ALL, NONE, *suit]))
        elif found[0].modality != kind:
            suits = ", ".join(c.name for c in known.values() if c.modality == kind)
            raise SveError(f"'{name}' corrupts {found[0].modality}s, and this run reads {kind}s.", f"For {kind}s: {suits}.")
        wanted |= {c.name for c in found}
    return [c for c in known.values() if c.name in wanted]


def require_severities(severities: Sequence[int]) -> list[int]:
    """Severities in ascending order, each once.

    Raises:
        SveError: none, or one outside 1 to 5.
    """
    if not severities:
        raise SveError("No severity is named.", "Use --severities 1,2,3,4,5.")
    for severity in severities:
        if severity not in SEVERITIES:
            clean = " The clean set, severity 0, is always measured." if severity == 0 else ""
            raise SveError(f"There is no severity {severity}: severities are 1 to 5.", f"Use --severities 1,2,3,4,5.{clean}")
    return sorted(set(severities))
