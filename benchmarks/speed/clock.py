"""Contenders take turns on the clock, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

Action = Callable[[int], object]  # told the number of the turn: the warm-up is turn 0


def synchronise() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


Clock = Literal["wall", "cpu"]
TIMERS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def clock_for(busy: bool) -> Clock:
    """The processor's time where other programs take turns with this one and one thread works; the wall's otherwise.

    With several threads processor time would count their waiting for each other as work.
    """
    return "cpu" if busy and torch.get_num_threads() == 1 and not torch.cuda.is_available() else "wall"


def seconds_of(action: Callable[[], object], clock: Clock = "wall") -> float:
    """Seconds of one call."""
    timer = TIMERS[clock]
    synchronise()
    start = timer()
    action()
    synchronise()
    return timer() - start


def interleave(
    actions: Mapping[str, Action], repeats: int, seconds: float, clock: Clock = "wall", warmup: bool = True, least: int = 2
) -> dict[str, list[float]]:
    """Seconds of each action, one value a turn; the order turns round at every other turn.

    Args:
        actions: name -> what is timed.
        repeats: most turns.
        seconds: no turn begins after this long by the same clock, once there are `least`.
        warmup: one turn before that is not counted.
        least: fewest turns.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    if warmup:
        for action in actions.values():
            action(0)
    for turn in range(1, repeats + 1):
        if turn > least and sum(map(sum, times.values())) > seconds:
            break
        names = list(actions) if turn % 2 else list(reversed(actions))
        for name in names:
            gc.collect()
            times[name].append(seconds_of(partial(actions[name], turn), clock))
    return times


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of n values."""

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def document(self) -> dict[str, float]:
        """As JSON, four digits."""
        return {"median": digits(self.median), "q1": digits(self.q1), "q3": digits(self.q3), "n": self.n}


def digits(value: float, n: int = 4) -> float:
    """Rounded to n significant digits."""
    return float(f"{value:.{n}g}")


def ratio(name: str, title: str, values: Sequence[float], target: float | None = None, at_least: bool = False) -> dict[str, Any]:
    """One line of the table: the spread of the turns' ratios beside its target.

    `at_least`: the target is a lower bound. `values`: one ratio a turn, both sides measured in that turn.
    """
    spread = Spread.of(values)
    found: dict[str, Any] = {"name": name, "title": title, **spread.document(), "target": target, "at_least": at_least}
    if target is not None:
        median = found["median"]  # as it is stored: the document must not contradict itself in the fifth digit
        found["reached"] = bool(median >= target if at_least else median <= target)
    return found


def paired(times: Mapping[str, Sequence[float]], ours: str, theirs: str) -> list[float]:
    """The ratio ours / theirs of every turn."""
    return [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
