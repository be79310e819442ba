"""The rules: when a worsening, or a value beyond its limit, is more than chance; and what a sample size can show at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtrit

from sve_cli.errors import SveError
from sve_cli.gate.alike import Alike
from sve_cli.gate.condition import Condition
from sve_cli.gate.spec import GateSpec
from sve_cli.metrics.base import Weighted
from sve_cli.render.tables import format_number, is_percent, metric_name
from sve_cli.report import Direction
from sve_cli.statistics import bootstrap_counts, seeded
from sve_cli.verdict import Check

POWER = 0.8
SAME = 1e-9  # a difference below this is the rounding of two equal computations
ROUNDING = 1e-5  # a worsening smaller than this is arithmetic: another batch size, another machine, a baseline file's digits
POINTS, SHARE = 0.02, 0.1  # what must not pass unseen by default: 2 points, or a tenth of the baseline's value
FEW = 5.0  # resamples beyond a bound; with fewer the normal quantile bounds it too
USUAL = 0.45  # standard error of a difference between two trainings, as a share of one side's; see docs/gates.md
BIAS = 0.5  # share of the bias of a difference that is taken out: all of it makes more noise than it mends
FOLDED = 1.0 / (math.sqrt(2.0) - 1.0)  # a mean of |noise| grows by sqrt(2) when the noise is added twice


@dataclass(frozen=True)
class Level:
    """`confidence`: of each interval, after it was shared among the comparisons."""

    confidence: float

    def quantile(self, freedom: float = math.inf) -> float:
        """How many standard errors the interval reaches, by Student's t where there are few degrees of freedom."""
        return _student(freedom, 0.5 + self.confidence / 2.0)

    def one_sided(self, freedom: float = math.inf) -> float:
        """How many standard errors a bound on one side reaches."""
        return _student(freedom, self.confidence)


def _student(freedom: float, p: float) -> float:
    return float(ndtri(p) if math.isinf(freedom) else stdtrit(freedom, p))


def share_level(confidence: float, comparisons: int) -> Level:
    """Bonferroni: each of the comparisons gets its part of 1 - confidence."""
    return Level(1.0 - (1.0 - confidence) / max(comparisons, 1))


@dataclass(frozen=True)
class Alone:
    """One side's value with what resampling says of it. `bias`: how far resampling moves it up on average, at least 0."""

    value: float
    error: float
    bias: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Against:
    """Both sides' values. `difference`: value - baseline, with its interval and standard error.

    Attributes:
        changed: on how many samples the two sides differ; None when they are not paired.
        usual: the standard error of one side alone; bias: the baseline's, see `Alone`.
        alike: of a calibration error, the chance differences of sides that are calibrated alike; None for other metrics.
    """

    value: float
    baseline: float
    low: float
    high: float
    error: float
    n: int
    changed: int | None
    usual: float
    bias: float
    alike: Alike | None = None

    @property
    def difference(self) -> float:
        return self.value - self.baseline


def alone(function: Weighted, n: int, resamples: int, level: Level, seed: int, limit: int | None = None) -> Alone:
    """A metric of n samples with the basic bootstrap interval (2 value - quantiles), which takes the bias out once."""
    blocks = bootstrap_counts(n, min(resamples, limit or resamples), seeded(seed, "bootstrap"))
    return alone_from(function, np.concatenate([function(weights_NR) for weights_NR in blocks]), n, level)


def alone_from(function: Weighted, values_R: np.ndarray, n: int, level: Level) -> Alone:
    """`alone`, from the resampled values that are there already."""
    value = float(function(np.ones((n, 1)))[0])
    tail = (1.0 - level.confidence) / 2.0
    low, high = (2.0 * value - float(q) for q in np.quantile(values_R, [1.0 - tail, tail]))
    mean, error = float(values_R.mean()), float(values_R.std(ddof=1))
    if len(values_R) * tail < FEW:  # too few resamples lie beyond to say where a small share of them begins
        reach, middle = level.quantile() * error, 2.0 * value - mean
        low, high = min(low, middle - reach), max(high, middle + reach)
    return Alone(value, error, max(mean - value, 0.0), low, high, n)


def unpaired(value: Alone, baseline: float, low: float, high: float, confidence: float, level: Level) -> Against:
    """Against a report's value alone: the two intervals as if the samples were others, which is wider than paired.

    Args:
        low, high: the report's interval, at `confidence`.
    """
    error = math.hypot(value.error, (high - low) / (2.0 * Level(confidence).quantile()))
    reach, difference = level.quantile() * error, value.value - baseline
    return Against(
        value.value, baseline, difference - reach, difference + reach, error, value.n, None, value.error, value.bias
    )  # fmt: skip


def judge_worsening(key: str, direction: Direction, gate: GateSpec, seen: Against, level: Level) -> Check:
    """Fail when the whole interval of the worsening lies beyond the slack.

    The interval is the paired bootstrap's, made at least as wide as Student's with as many degrees of freedom as samples that
    differ less one: a few flipped samples alone are no evidence. What lies within 1e-5 of the slack does not fail.

    A calibration error's lower bound is the smaller of two: by the standard error that two sides calibrated alike would have, and
    one-sided by the bootstrap's, which holds whatever the gaps are.
    """
    _require_finite(key, seen.value, seen.baseline, seen.low, seen.high)
    sign = -1.0 if direction == "higher" else 1.0
    worsening = sign * seen.difference if abs(seen.difference) >= SAME else 0.0  # rounding, and no -0.0
    low, high = sorted((sign * seen.low + 0.0, sign * seen.high + 0.0))
    reach = _reach(seen, level)
    low, high = min(low, worsening - reach), max(high, worsening + reach)
    if seen.alike is not None:
        low = worsening - _reach_of_gaps(seen, level)
    slack = max(gate.slack or 0.0, (gate.relative_slack or 0.0) * abs(seen.baseline))
    metric = key.rpartition(".")[2]
    detect = gate.detect if gate.detect is not None and gate.detect > slack else slack + _margin(metric, seen.baseline)
    error = seen.error if seen.changed is None else max(seen.error, USUAL * seen.usual)
    reached, hidden = level.quantile() * error, FOLDED * seen.bias
    if seen.alike is not None and seen.error > 0.0:
        reached = max(reached * seen.alike.error / seen.error, level.one_sided() * error - BIAS * seen.bias)
        hidden = seen.alike.folded
    detectable = slack + reached + float(ndtri(POWER)) * error + hidden
    fails = low > slack + ROUNDING
    shown = amounts(metric)
    kind = "unpaired" if seen.changed is None else "paired"
    interval = "too few samples differ for an interval" if math.isinf(low) else f"interval {shown(low)} to {shown(high)}"
    word = "worse" if worsening > 0 else "better"
    change = "the same" if shown(abs(worsening)) == shown(0.0) else f"{word} by {shown(abs(worsening))}"
    verb = "all beyond" if fails else "not all beyond" if worsening > slack + ROUNDING else "within"
    sentence = f"{_label(key)} is {change} ({kind}, {interval}), {verb} the slack of {shown(slack)}."
    return Check(
        key, _label(key), "worsening", "fail" if fails else "pass", sentence, direction, seen.value, seen.baseline, worsening,
        low, high, slack, detectable, detect, seen.n, seen.changed is not None, [],
    )  # fmt: skip


def judge_limit(key: str, direction: Direction, gate: GateSpec, seen: Alone, level: Level) -> Check:
    """Fail when the whole interval of the value lies beyond the limit."""
    assert gate.limit is not None
    _require_finite(key, seen.value, seen.low, seen.high)
    metric = key.rpartition(".")[2]
    shown = amounts(metric)
    fails = seen.low > gate.limit + ROUNDING if direction == "lower" else seen.high < gate.limit - ROUNDING
    beyond = seen.value > gate.limit if direction == "lower" else seen.value < gate.limit
    detect = gate.detect if gate.detect is not None and not gate.compares else _margin(metric, gate.limit)
    detectable = (level.quantile() + float(ndtri(POWER))) * seen.error
    where = "all beyond" if fails else "not all beyond" if beyond else "within"
    sentence = (
        f"{_label(key)} is {shown(seen.value)} (interval {shown(seen.low)} to {shown(seen.high)}), "
        f"{where} the limit of {shown(gate.limit)}."
    )
    notes = ["The value lies beyond the limit, but by no more than chance allows."] if beyond and not fails else []
    return Check(
        key, _label(key), "limit", "fail" if fails else "pass", sentence, direction, seen.value, None, None, seen.low, seen.high,
        gate.limit, detectable, detect, seen.n, None, notes,
    )  # fmt: skip


def judge_condition(condition: Condition, value: float, direction: Direction, n: int) -> Check:
    """Fail when the value as it is meets the condition; no interval is asked."""
    _require_finite(condition.key, value)
    fails = condition.holds(value)
    wrong_way = {"higher": ">", "lower": "<"}.get(direction) == condition.sign[0]
    notes = [f"{_label(condition.key)} is better {direction}: this fails when it is good."] if wrong_way else []
    sentence = f"{condition.key} is {value:.6g}: {'fails' if fails else 'does not fail'} because of '{condition.text}'."
    return Check(
        condition.text, _label(condition.key), "condition", "fail" if fails else "pass", sentence, direction, value,
        allowed=condition.number, n=n, notes=notes,
    )  # fmt: skip


def _require_finite(key: str, *numbers: float) -> None:
    """Refuse numbers that no comparison holds for: a check on them would pass whatever they stand for.

    Raises:
        SveError: one is NaN or infinite.
    """
    if not all(math.isfinite(number) for number in numbers):
        raise SveError(f"'{key}' cannot be judged: its value, its interval or its baseline is not finite.", "Evaluate again.")


def worst_check(key: str, checks: Sequence[Check]) -> Check:
    """The check of the slice that is worst off, under the address `key`; what can be seen is what the blindest slice shows.

    Args:
        checks: of one rule, a slice each.
    """
    severity = ("pass", "warn", "fail").index  # "warn": it was not compared, and may be anything
    chosen = max(checks, key=lambda check: (severity(check.outcome), _excess(check), _excess(check, seen=True)))
    seen = [check for check in checks if check.detectable is not None]
    blindest = max(seen, key=lambda check: (check.detectable or 0.0) - (check.detect or 0.0)) if seen else chosen
    name = chosen.key if chosen.rule != "condition" else chosen.key.rsplit(" ", 2)[0].strip('"')
    unseen = [check for check in checks if _excess(check) == -math.inf]
    first = "One not compared" if chosen in unseen else "The worst"
    of = f"{first} of {len(checks)} slices is {name.removeprefix('slice.').rpartition('.')[0]}. " if len(checks) > 1 else ""
    failed, blind = sum(check.outcome == "fail" for check in checks), sum(check.blind for check in checks)
    notes = [f"{failed} of {len(checks)} slices fail."] if failed > 1 else []
    notes += [f"{len(unseen)} of {len(checks)} slices were not compared."] if unseen else []
    notes += [f"{blind} of {len(checks)} slices are too small to show what must not pass unseen."] if blind else []
    return replace(
        chosen, key=key, label=_label(key), sentence=of + chosen.sentence, detectable=blindest.detectable, detect=blindest.detect,
        notes=[*chosen.notes, *notes],
    )  # fmt: skip


def _excess(check: Check, seen: bool = False) -> float:
    """How far a check lies beyond what it allows: the near end of its interval, or what was seen."""
    sign = -1.0 if check.direction == "higher" and check.rule != "worsening" else 1.0
    value = check.worsening if check.rule == "worsening" else check.value
    near = value if seen or check.rule == "condition" else check.low if sign > 0 else check.high
    return -math.inf if near is None else sign * (near - (check.allowed or 0.0))


def amounts(metric: str) -> Callable[[float], str]:
    """How amounts of a metric are written: one digit more than a report, with their unit."""
    digits = len(format_number(metric, 0.0).partition(".")[2]) + 1

    def shown(value: float) -> str:
        return f"{100 * value:z.{digits}f} %" if is_percent(metric) else f"{value:z.{digits}f}"

    return shown


def _reach(seen: Against, level: Level) -> float:
    if seen.error == 0.0:
        return 0.0
    if seen.changed is None:
        return level.quantile() * seen.error
    return level.quantile(seen.changed - 1) * seen.error if seen.changed > 1 else math.inf


def _reach_of_gaps(seen: Against, level: Level) -> float:
    """How far below the worsening seen the bound of a calibration error lies."""
    if seen.error == 0.0 or seen.changed is None or seen.changed <= 1 or seen.alike is None:
        return _reach(seen, level)
    freedom = seen.changed - 1
    return max(level.quantile(freedom) * seen.alike.error, level.one_sided(freedom) * seen.error + BIAS * seen.alike.bias)


def _margin(metric: str, value: float) -> float:
    return POINTS if is_percent(metric) else SHARE * abs(value)


def _label(key: str) -> str:
    prefix, _, metric = key.rpartition(".")
    return f"{metric_name(metric)} ({prefix})" if prefix else metric_name(metric)
