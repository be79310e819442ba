"""The document that a run writes: schema, merging, and the check against a stored one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sve_cli.rundir import read_json, write_json

SCHEMA = "sve-speed/1"
SLACK, ROOM = 1.6, 0.1  # a ratio is worse when it is above SLACK times the stored one plus ROOM


class BadDocument(Exception):
    """A stored document that cannot be used; the message says why."""


def read(path: Path) -> dict[str, Any]:
    """A stored document.

    Raises:
        BadDocument: it is missing or of another schema.
    """
    if not path.is_file():
        raise BadDocument(f"There is no '{path}'. Make it with: python -m benchmarks.speed --short --out {path.parent}")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise BadDocument(f"'{path}' is not of the schema {SCHEMA}.")
    return found


def started(path: Path, tier: str, machine: dict[str, Any]) -> dict[str, Any]:
    """The document to add to: the stored one, else a new one.

    Raises:
        BadDocument: the stored one was measured on another machine, with other threads, or in another form.
    """
    if path.is_file():
        old = read_json(path)
        if isinstance(old, dict) and (old.get("schema"), old.get("tier"), old.get("machine")) == (SCHEMA, tier, machine):
            return old
        raise BadDocument(
            f"'{path}' holds another machine's run, another form's, or one with other threads. Name another --out, or remove it."
        )
    return {"schema": SCHEMA, "tier": tier, "machine": machine, "roofline": {}, "workloads": {}}


def store(path: Path, document: dict[str, Any]) -> None:
    """Write it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)


def compare(measured: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What got worse: one sentence for each ratio of the check that is above its bound.

    Raises:
        BadDocument: the stored document has no check.
    """
    kept = stored["workloads"].get("check")
    if not kept or "ratios" not in kept:
        raise BadDocument("The stored document holds no check. Run: python -m benchmarks.speed --short --only check")
    old = {r["name"]: r["median"] for r in kept["ratios"]}
    worse = []
    for found in measured["ratios"]:
        if found["name"] not in old:
            continue
        bound = SLACK * old[found["name"]] + ROOM
        if not found["median"] <= bound:  # a NaN is worse too
            worse.append(
                f"SVE's step {found['title']} is {found['median']:.2f}, stored {old[found['name']]:.2f} "
                f"(worse above {SLACK} x stored + {ROOM} = {bound:.2f})."
            )
    return worse
