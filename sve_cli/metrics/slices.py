"""Parts of the test set: which of them are worse than the rest, beyond what chance gives so many parts.

Shapes: N samples, G groups (the values of one column), R permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import hypergeom, pearson3

from sve_cli.metrics.accuracy import accuracy
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric
from sve_cli.metrics.binning import bin_index
from sve_cli.metrics.ece import ece_top1
from sve_cli.metrics.intervals import MANY, measure
from sve_cli.metrics.nll import nll
from sve_cli.metrics.per_class import options_vary
from sve_cli.report import MetricValue, Slice
from sve_cli.statistics import holm, seeded

SMALLEST = 30  # samples; with fewer a slice is listed, not judged
MOST_VALUES = 200  # a column of text with more values is no slice
NONE = "(none)"  # the name of an empty value
MOST_NUMBERS = 20  # a column of numbers with more values is cut into quarters
METRICS: tuple[Metric, ...] = (accuracy, nll, ece_top1)
LEVEL = 0.05
BOOTSTRAP = 400  # resamples at most, of each slice within itself
SMALL = 2_000  # of many samples, slices of more than this are resampled in random groups
PERMUTATIONS, FEWEST, WORK = 500, 100, 100_000_000


@dataclass(frozen=True)
class Grouping:
    """A column as whole numbers: sample i belongs to `values[group_N[i]]`."""

    column: str
    values: list[str]
    group_N: np.ndarray


def slices(
    view: Aggregated,
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    bins: int,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> list[Slice]:
    """Accuracy, NLL and calibration error of every part that the columns and the classes make, largest doubt first.

    Only labelled samples count. "Worse than the rest" is tested one-sided: accuracy by Fisher's exact test; the other two against
    random parts of the same size, drawn by permutation, whose tail is that of a Pearson III distribution with the permutations'
    mean, variance and skewness (Winkler et al. 2016, NeuroImage 141). The p-values are corrected for all of them together (Holm).
    """
    labelled = view.labelled()
    many = MANY if labelled.n <= MANY else SMALL
    parts: list[Slice] = []
    tests: list[tuple[int, str, float]] = []
    for g in groupings(view, columns, classes):
        p_values = not_corrected(labelled, g, bins, seed)
        for k, value in enumerate(g.values):
            inside = np.flatnonzero(g.group_N == k)
            parts.append(Slice(g.column, value, len(inside)))
            if len(inside) >= SMALLEST:
                parts[-1] = replace(parts[-1], metrics=_measured(labelled.part(inside), bins, bootstrap, confidence, seed, many))
                tests += [(len(parts) - 1, key, float(p_G[k])) for key, p_G in p_values.items() if len(inside) < labelled.n]
    for (i, key, _), p in zip(tests, holm([p for _, _, p in tests]), strict=True):
        parts[i].worse[key] = p
    return sorted(parts, key=lambda part: (not part.metrics, part.p_worse, part.metrics["accuracy"].value if part.metrics else 0))


def groupings(view: Aggregated, columns: Mapping[str, Sequence[str]], classes: Sequence[str]) -> list[Grouping]:
    """How the columns and the classes part the labelled samples."""
    known_N = view.labels_N >= 0
    labelled = view.labelled()
    if not labelled.n:
        return []
    kept = {name: [value for value, known in zip(values, known_N, strict=True) if known] for name, values in columns.items()}
    found = [one for name, values in kept.items() if (one := grouping(name, values))]
    if "class" not in kept and not options_vary(labelled):
        present, group_N = np.unique(labelled.labels_N, return_inverse=True)
        if len(present) > 1:
            names = [classes[c] for c in present]
            twice = {name for name in names if names.count(name) > 1}
            found.append(
                Grouping("class", [f"{n} ({c})" if n in twice else n for n, c in zip(names, present, strict=True)], group_N)
            )
    return found


def worst(parts: Sequence[Slice]) -> Slice | None:
    """The least accurate of the slices that are worse than the rest beyond chance (corrected p < 0.05); None without one.

    One that is worse in its calibration error alone comes after all that are less accurate or have the higher NLL.
    """
    found = [part for part in parts if part.p_worse < LEVEL]
    return min(found, key=lambda p: (_only_miscalibrated(p), p.metrics["accuracy"].value, p.p_worse)) if found else None


def _only_miscalibrated(part: Slice) -> bool:
    return all(part.worse[key] >= LEVEL for key in ("accuracy", "nll"))


def in_words(parts: Sequence[Slice]) -> str | None:
    """One sentence that names the worst slice; None where no slice is large enough."""
    judged = [part for part in parts if part.metrics]
    if not judged:
        return None
    found, least = worst(judged), min(judged, key=lambda part: part.metrics["accuracy"].value)
    return " ".join([_of_worst(found, least), *_not_judged([part for part in parts if not part.metrics])])


def _of_worst(found: Slice | None, least: Slice) -> str:
    if found is None:
        return f"No slice of the test set is worse than the rest beyond chance; the least accurate is {_shown(least)}."
    if _only_miscalibrated(found):
        [ece] = [metric.value for key, metric in found.metrics.items() if key not in ("accuracy", "nll")]
        return (
            f"No slice of the test set is less accurate than the rest beyond chance; the least accurate is {_shown(least)}. "
            f"The calibration error of {found.column} = {found.value} is worse than the rest's ({100 * ece:.1f} %)."
        )
    names = {"accuracy": "accuracy", "nll": "NLL"}
    worse = [names.get(key, "calibration error") for key, p in found.worse.items() if p < LEVEL]
    listed = " and ".join([", ".join(worse[:-1]), worse[-1]] if len(worse) > 1 else worse)
    return f"The worst slice is {_shown(found)}: its {listed} {'is' if len(worse) == 1 else 'are'} worse than the rest's."


def _shown(part: Slice) -> str:
    accuracy, span = part.metrics["accuracy"], ""
    if accuracy.low is not None and accuracy.high is not None:
        span = f", interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %"
    return f"{part.column} = {part.value} (right on {100 * accuracy.value:.1f} % of {part.n:,} samples{span})"


def _not_judged(small: Sequence[Slice]) -> list[str]:
    if not small:
        return []
    of = f"{small[0].column} = {small[0].value} has" if len(small) == 1 else f"{len(small):,} slices have"
    return [f"{of} fewer than {SMALLEST} samples and {'is' if len(small) == 1 else 'are'} not judged."]


def _measured(view: Aggregated, bins: int, bootstrap: int, confidence: float, seed: int, many: int) -> dict[str, MetricValue]:
    found = measure(view, METRICS, bins, min(bootstrap, BOOTSTRAP), confidence, seed, many)
    return {key: replace(value, definition=f"As {key}, of this slice alone.") for key, value in found.items()}


def grouping(column: str, values: Sequence[str]) -> Grouping | None:
    """The column's groups: its values, or quarters of many numbers; None where it has one value or too many.

    Values that are empty belong to the group `NONE`.
    """
    filled_N = np.array([value != "" for value in values], dtype=bool)
    numbers = _numbers([value for value in values if value != ""])
    if numbers is not None and len(set(values) - {""}) > MOST_NUMBERS:
        names, of_filled = _quarters(numbers)
        group_N = np.full(len(values), len(names))
        group_N[filled_N] = of_filled
        names += [] if filled_N.all() else [NONE]
        return Grouping(column, names, group_N) if len(names) > 1 else None
    named = [value or NONE for value in values]
    distinct = sorted(set(named))
    if not 1 < len(distinct) <= MOST_VALUES:
        return None
    place = {value: i for i, value in enumerate(distinct)}
    return Grouping(column, distinct, np.array([place[value] for value in named]))


def _quarters(numbers: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The quarters of the numbers as 'low-high', and the quarter of each; fewer where many numbers are equal."""
    cuts = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75]))
    index_N = np.searchsorted(cuts, numbers, side="left")  # group k: (cut k-1, cut k]
    present, group_N = np.unique(index_N, return_inverse=True)
    spans = [(numbers[group_N == k].min(), numbers[group_N == k].max()) for k in range(len(present))]
    return _spans(spans), group_N


def _spans(spans: Sequence[tuple[float, float]]) -> list[str]:
    """'low-high' of each, whole or with as many digits as make them differ: they are addresses."""
    if all(float(end).is_integer() and abs(end) < 1e15 for span in spans for end in span):
        return [f"{low:.0f}-{high:.0f}" for low, high in spans]
    named = [[f"{low:.{digits}g}-{high:.{digits}g}" for low, high in spans] for digits in range(6, 18)]
    return next((names for names in named if len(set(names)) == len(names)), named[-1])


def _numbers(values: Sequence[str]) -> np.ndarray | None:
    """The values as finite numbers; None where one is not."""
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:  # it is text
        return None
    return numbers if np.isfinite(numbers).all() else None


def not_corrected(view: Aggregated, g: Grouping, bins: int, seed: int) -> dict[str, np.ndarray]:
    """metric key -> p (G,) of each group, not corrected."""
    n, groups = view.n, len(g.values)
    size_G, wrong_N = np.bincount(g.group_N, minlength=groups), 1.0 - view.correct_N
    errors_G = np.bincount(g.group_N, wrong_N, minlength=groups)
    loss_N = -view.log_label_N
    bin_N, gap_N = bin_index(view.confidence_N, bins), view.correct_N - view.confidence_N

    def numbers(group_N: np.ndarray) -> np.ndarray:
        gaps_GB = np.bincount(group_N * bins + bin_N, gap_N, minlength=groups * bins).reshape(groups, bins)
        return np.stack([np.bincount(group_N, loss_N, minlength=groups), np.abs(gaps_GB).sum(axis=1)]) / size_G

    rng = seeded(seed, f"slices of {g.column}")
    repeats = min(PERMUTATIONS, max(FEWEST, WORK // n))
    drawn_R2G = np.stack([numbers(rng.permutation(g.group_N)) for _ in range(repeats)])
    p_2G = upper_tail(numbers(g.group_N), drawn_R2G)
    return {
        accuracy.key(bins): hypergeom.sf(errors_G - 1.0, n, round(wrong_N.sum()), size_G),
        nll.key(bins): p_2G[0],
        ece_top1.key(bins): p_2G[1],
    }


def upper_tail(seen: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """P(as large as seen) under a Pearson III distribution with the mean, variance and skewness of the draws (first axis)."""
    mean, spread = drawn.mean(axis=0), drawn.std(axis=0)
    flat = spread <= 1e-12 * np.maximum(np.abs(mean), 1.0)
    safe = np.where(flat, 1.0, spread)
    skew = np.mean(((drawn - mean) / safe) ** 3, axis=0)
    return np.where(flat, 1.0, pearson3.sf((seen - mean) / safe, skew))
