"""What paired comparisons and member curves found: the values that their JSON, Markdown and HTML views are made of.

A is the reference and B what is compared with it. All numbers are plain (0.95, not 95 %).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sve_cli.json_text import to_json

COMPARISON_SCHEMA = "sve-comparison/1"
MEMBERS_SCHEMA = "sve-members/1"
TIE = "tie (inside the interval)"


@dataclass(frozen=True)
class Difference:
    """B - A of one number over the same n samples.

    Attributes:
        key: its address: `nll`, `temperature.nll`, `ood.<set>.<score>.auroc_ood`.
        metric: the metric's key without what stands before it (`nll`, `auroc_ood`).
        group: the OOD set it is about, else nothing.
        label: what people call it, with the score where it matters.
        direction: which way is better; "none" for a description.
        definition: the metric in one line.
        reference, other, difference: A, B and B - A (means over seeds where a side has several).
        low, high: paired bootstrap interval of the difference.
        standard_error: standard deviation of the resampled differences.
        p_value: two-sided permutation p; None when no permutation was asked for.
        p_holm: the same after Holm's correction for all differences it was listed with.
        n_needed: about how many samples would show a difference of this size with 80 % power at the two-sided 5 % level,
            by the normal approximation; None when there is no difference at all.
        by_seed: the difference of each pair of seeds, where both sides have equally many and several.
    """

    key: str
    metric: str
    group: str
    label: str
    direction: Literal["higher", "lower", "none"]
    definition: str
    n: int
    reference: float
    other: float
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float | None
    p_holm: float | None
    n_needed: int | None
    by_seed: tuple[float, ...] = ()

    @property
    def is_tie(self) -> bool:
        """The interval holds 0, or lies on the other side of 0 than the difference itself."""
        return not ((self.low > 0.0 and self.difference > 0.0) or (self.high < 0.0 and self.difference < 0.0))

    @property
    def verdict(self) -> str:
        """'B better', 'A better' ('B higher', 'A higher' for a description) or 'tie (inside the interval)'."""
        if self.is_tie:
            return TIE
        if self.direction == "none":
            return "B higher" if self.difference > 0 else "A higher"
        return "B better" if (self.difference > 0) == (self.direction == "higher") else "A better"


@dataclass(frozen=True)
class Pair:
    """One system against the reference, on the samples both have.

    Attributes:
        name: what B is called; `members`: how many it averages.
        n: samples compared; `only_reference`, `only_other`: samples left out because the other side lacks them.
        sentences: the verdict in words.
        differences: the rows; notes: what weakens them or was left out.
    """

    name: str
    members: int
    n: int
    only_reference: int
    only_other: int
    sentences: list[str]
    differences: list[Difference]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Systems compared with one reference. `settings`: aggregate, bins, bootstrap, permutations, confidence, seed."""

    reference: str
    members: int
    dataset: str
    pairs: list[Pair]
    settings: dict[str, Any]
    schema: str = COMPARISON_SCHEMA

    def document(self) -> dict[str, Any]:
        """What JSON says: the fields, and each verdict in words."""
        found = asdict(self)
        for pair, shown in zip(self.pairs, found["pairs"], strict=True):
            for difference, row in zip(pair.differences, shown["differences"], strict=True):
                row["verdict"] = difference.verdict
        return found

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(self.document())


@dataclass(frozen=True)
class CurvePoint:
    """One metric with `members` members.

    Attributes:
        subsets: how many subsets of that size were taken; `every`: these are all there are.
        value: mean over the subsets; `smallest`, `largest`: its range over the subsets.
        low, high: bootstrap interval of `value` over samples.
        difference: `value` minus the value with all members, with its paired interval.
    """

    members: int
    subsets: int
    every: bool
    value: float
    smallest: float
    largest: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Curve:
    """One metric as a function of the number of members; the fields are those of `Difference`."""

    key: str
    metric: str
    group: str
    label: str
    direction: Literal["higher", "lower", "none"]
    definition: str
    n: int
    points: list[CurvePoint]


@dataclass(frozen=True)
class MemberCurves:
    """How many members are needed. `enough`: the answer by NLL, None without labels; `sentences`: in words."""

    name: str
    members: int
    dataset: str
    n: int
    enough: int | None
    sentences: list[str]
    curves: list[Curve]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    schema: str = MEMBERS_SCHEMA

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(asdict(self))
