"""What a comparison says, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from sve_cli.comparison.members import enough_members, within_relative
from sve_cli.comparison.paired import LEVEL
from sve_cli.findings import Curve, CurvePoint, Difference
from sve_cli.render.comparison import rounded

FIRST = ("nll", "accuracy")  # the tie whose sample size is told
NAMES = ("Brier",)  # of people: written large anywhere, also before what they are parts of


def pair_sentences(name: str, reference: str, rows: Sequence[Difference]) -> list[str]:
    """The verdict on `name` (B) against `reference` (A): one sentence each for the metrics, after scaling, and OOD sets.

    Descriptions, which have no better side, are left to the table.
    """
    judged = [row for row in rows if row.direction != "none"]
    if not judged:
        return ["No compared metric has a better side."]
    groups: dict[str, list[Difference]] = {}
    for row in judged:
        groups.setdefault(_opening(row), []).append(row)
    sentences = [_verdict(opening, name, reference, part) for opening, part in groups.items()]
    return sentences + _corrected(rows) + _size(judged)


def _corrected(rows: Sequence[Difference]) -> list[str]:
    """What the correction for many rows leaves of the verdicts."""
    decided = [row for row in rows if not row.is_tie and row.p_holm is not None]
    if not decided:
        return []
    kept = sum(row.p_holm is not None and row.p_holm < LEVEL for row in decided)
    them = "1 row that is no tie" if len(decided) == 1 else f"{len(decided)} rows that are no ties"
    keep = f"{kept} {'keeps' if kept == 1 else 'keep'}"
    many = f"all {len(rows)} rows" if len(rows) > 1 else "the one row"
    return [f"Of the {them}, {keep} p < {LEVEL} after the correction for {many} (Holm)."]


def _opening(row: Difference) -> str:
    if row.key.startswith("temperature."):
        return "After temperature scaling of both, "
    return f"On the out-of-distribution set {row.group}, " if row.group else ""


def _verdict(opening: str, name: str, reference: str, rows: Sequence[Difference]) -> str:
    parts = []
    for verdict, who in (("B better", name), ("A better", reference)):
        if better := [_short(row) for row in rows if row.verdict == verdict]:
            parts.append(f"{who} is better on {_listed(better)}")
    ties = [_short(row) for row in rows if row.is_tie]
    if ties and parts:
        parts.append(f"{_listed(ties)} {'is a tie' if len(ties) == 1 else 'are ties'}")
    elif ties:
        parts.append(f"no difference between {name} and {reference} can be seen on {_listed(ties)}")
        parts[0] = parts[0] if opening else f"N{parts[0][1:]}"
    return f"{opening}{'; '.join(parts)}."


def _short(row: Difference) -> str:
    """The label inside a sentence: `accuracy`, `ECE (equal mass)`, `AUROC by entropy`."""
    first, comma, rest = row.label.partition(", ")
    text = f"{first} ({rest})" if comma else first
    return text if text[:2].isupper() or text.startswith(NAMES) else text[0].lower() + text[1:]


def _size(rows: Sequence[Difference]) -> list[str]:
    """How many samples the first tie would take to be seen."""
    for row in sorted(rows, key=lambda r: FIRST.index(r.key) if r.key in FIRST else len(FIRST)):
        if row.is_tie and row.n_needed is not None:
            return [
                f"A difference in {_short(row)} as small as the one seen here would take about {rounded(row.n_needed)} samples to "
                f"show; there are {row.n:,}."
            ]
    return []


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def member_sentences(curves: Sequence[Curve]) -> list[str]:
    """How many members are enough, and what one alone and one fewer than all are worth, by NLL."""
    nll = next((curve for curve in curves if curve.key == "nll"), None)
    enough = enough_members(curves)
    if nll is None or enough is None:
        return ["How many members are enough is said by the NLL, which is not here: it needs labels, and a place among --metrics."]
    one, whole, point = nll.points[0], nll.points[-1], nll.points[enough - 1]
    if enough < whole.members:
        small = "is less than 1 % of it" if within_relative(point, whole) else f"has an interval {_interval(point)} that holds 0"
        first = (
            f"{enough} of the {whole.members} members {'is' if enough == 1 else 'are'} enough here: the NLL is {point.value:.4f} "
            f"on average, and {whole.value:.4f} with all; the difference of {point.difference:+.4f} {small}."
        )
    else:
        before = nll.points[-2]
        first = (
            f"All {whole.members} members are worth having: with {before.members} the NLL is {before.value:.4f} on average, and "
            f"{whole.value:.4f} with all, a difference of {before.difference:+.4f} {_interval(before)}. More may lower it further."
        )
    alone = f"One member alone has an NLL of {one.value:.4f} on average ({one.smallest:.4f} to {one.largest:.4f})."
    return [first, alone]


def _interval(point: CurvePoint) -> str:
    return f"({point.difference_low:+.4f} to {point.difference_high:+.4f})"
