"""What `sve shift` found: the numbers of every corruption at every severity, what they come to, and that in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sve_cli.json_text import finite

SCHEMA = "sve-shift/2"  # 2: a change is a number with its interval
CONFIDENCE = "confidence_mean"
NEAR = 0.01  # mean confidence this close to accuracy is neither over nor under it


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """The metrics of one set of predictions, by report key, and after the run's temperature ({} without one)."""

    ensemble: dict[str, Estimate]
    temperature: dict[str, Estimate]


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity; severity 0, without a corruption, is the clean set.

    Attributes:
        untouched: every prediction is the clean one to the bit: the network does not see this corruption.
        change: from the clean rows, the same samples; its intervals are of the paired bootstrap. None for the clean set itself.
    """

    corruption: str
    severity: int
    n: int
    scores: Scores
    untouched: bool = False
    change: Scores | None = None


@dataclass(frozen=True)
class SecondSet:
    """Another labelled set.

    Attributes:
        left_out: its rows of classes that the run does not know, or of none.
        change: from the clean rows, which are other samples: without intervals.
    """

    name: str
    n: int
    left_out: int
    scores: Scores
    change: Scores


@dataclass(frozen=True)
class Mean:
    """Plain means over the corruptions at one severity, by report key."""

    severity: int
    corruptions: int
    ensemble: dict[str, float]
    temperature: dict[str, float]


@dataclass(frozen=True)
class Kind:
    """What a corruption is, in words."""

    title: str
    group: str
    definition: str
    strengths: str


@dataclass(frozen=True)
class Shift:
    """What `sve shift` found: JSON is the truth, the other files are views of it.

    Attributes:
        metrics: report key -> definition; the keys of all scores, in this order.
        temperature: the run's own, None without one.
        clean: the test rows as they are.
    """

    title: str
    dataset: str
    split: str
    members: int
    rows: str
    confidence: float
    metrics: dict[str, str]
    temperature: float | None
    kinds: dict[str, Kind]
    clean: Cell
    cells: list[Cell]
    sets: list[SecondSet]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def severities(self) -> list[int]:
        """The severities measured, ascending, without the clean set's."""
        return sorted({cell.severity for cell in self.cells})

    def cell(self, corruption: str, severity: int) -> Cell:
        """One cell; the clean one for severity 0."""
        if severity == 0:
            return self.clean
        return next(c for c in self.cells if (c.corruption, c.severity) == (corruption, severity))

    def means(self) -> list[Mean]:
        """The means over corruptions at each severity, the clean set first."""
        parts = [[self.clean], *([c for c in self.cells if c.severity == severity] for severity in self.severities)]
        return [
            Mean(
                part[0].severity,
                0 if part[0] is self.clean else len(part),
                _mean_of(cell.scores.ensemble for cell in part),
                _mean_of(cell.scores.temperature for cell in part),
            )
            for part in parts
        ]

    def worst(self) -> str | None:
        """The corruption with the lowest mean accuracy over the severities."""
        if not self.cells:
            return None
        return min(
            self.kinds, key=lambda name: sum(c.scores.ensemble["accuracy"].value for c in self.cells if c.corruption == name)
        )

    def untouched(self) -> list[str]:
        """The corruptions that the network does not see at any severity."""
        return [name for name in self.kinds if all(c.untouched for c in self.cells if c.corruption == name)]

    def headline(self) -> list[str]:
        """The result in words."""
        sets = [_set_sentence(self, other) for other in self.sets]
        return [*_mean_sentences(self), *_worst_sentence(self), *_beyond_chance(self), *sets]

    def document(self) -> dict[str, Any]:
        """As JSON: numbers that are not finite are null."""
        document = {"schema": SCHEMA, **asdict(self), "severities": self.severities, "headline": self.headline()}
        document["means"] = [asdict(mean) for mean in self.means()]
        document["worst"] = self.worst()
        return dict(finite(document))


def find(keys: Iterable[str], start: str) -> str:
    """The key that begins with `start`, whatever its number of bins."""
    return next(key for key in keys if key.startswith(start))


def _mean_of(parts: Iterable[dict[str, Estimate]]) -> dict[str, float]:
    found = list(parts)
    return {key: math.fsum(part[key].value for part in found) / len(found) for key in found[0]}


def _mean_sentences(found: Shift) -> list[str]:
    """The means at the highest severity beside the clean set, and whether confidence went down with accuracy."""
    if not found.cells:
        return []
    clean, worst = found.means()[0].ensemble, found.means()[-1].ensemble
    severity, ece = found.severities[-1], find(clean, "ece_")
    over = "" if len(found.kinds) == 1 else f", mean over {len(found.kinds)} corruptions"
    sentences = [
        f"At severity {severity}{over}, accuracy is {_percent(worst['accuracy'])} (clean {_percent(clean['accuracy'])}) and the "
        f"calibration error {_percent(worst[ece])} (clean {_percent(clean[ece])})."
    ]
    if found.members > 1:
        key = "mutual_information_mean"
        sentences.append(f"Mutual information is {worst[key]:.4f} at severity {severity} (clean {clean[key]:.4f}).")
    gap, before = (part[CONFIDENCE] - part["accuracy"] for part in (worst, clean))
    return [*sentences, f"Mean confidence is {_gap(gap)} at severity {severity}; on the clean set it is {_gap(before)}."]


def _worst_sentence(found: Shift) -> list[str]:
    name = found.worst()
    if name is None or len(found.kinds) < 2:
        return []
    values = {c.severity: c.scores.ensemble["accuracy"].value for c in found.cells if c.corruption == name}
    last, clean = max(values), found.clean.scores.ensemble["accuracy"].value
    average = f", {_percent(sum(values.values()) / len(values))} on average over severities {_listed(sorted(values))}"
    return [
        f"The worst corruption is {_named(found.kinds[name], name)}: accuracy {_percent(values[last])} at severity {last}"
        f"{average if len(values) > 1 else ''} (clean {_percent(clean)})."
    ]


def _beyond_chance(found: Shift) -> list[str]:
    """How many cells changed by more than their intervals allow; nothing where there are no intervals."""
    if not found.cells:
        return []
    accuracy, ece = ([c.change.ensemble[key] for c in found.cells if c.change] for key in ("accuracy", find(found.metrics, "ece_")))
    if not any(change.low is not None for change in (*accuracy, *ece)):
        return []
    fell = sum(change.high is not None and change.high < 0 for change in accuracy)
    rose = sum(change.low is not None and change.low > 0 for change in ece)
    level = f"{100 * found.confidence:.4g} %"
    if len(found.cells) == 1:
        verbs = "fell" if fell else "did not fall", "rose" if rose else "did not rise"
        return [f"Accuracy {verbs[0]} by more than chance, and the calibration error {verbs[1]} (paired {level} intervals)."]
    return [
        f"Of {len(found.cells)} cells (a corruption at a severity), accuracy fell by more than chance in {fell} and the "
        f"calibration error rose in {rose}: there the paired {level} interval of the change lies on one side of 0."
    ]


def _named(kind: Kind, name: str) -> str:
    return name if kind.title.lower() == name else f"{kind.title.lower()} ({name})"


def _set_sentence(found: Shift, other: SecondSet) -> str:
    one, clean = other.scores.ensemble, found.clean.scores.ensemble
    ece = find(one, "ece_")
    return (
        f"On {other.name} ({other.n:,} rows) accuracy is {_percent(one['accuracy'].value)} (clean test rows "
        f"{_percent(clean['accuracy'].value)}) and the calibration error {_percent(one[ece].value)} "
        f"({_percent(clean[ece].value)})."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _gap(gap: float) -> str:
    if abs(gap) < NEAR:
        return "within a point of accuracy"
    return f"{100 * abs(gap):.1f} points {'above' if gap > 0 else 'below'} accuracy"


def _listed(severities: Sequence[int]) -> str:
    return ", ".join(str(s) for s in severities[:-1]) + f" and {severities[-1]}"
