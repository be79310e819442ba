"""`--fail-if 'ece_top1_w15 > 0.03'`: an address, a comparison, a number. Read by hand, never evaluated."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from sve_cli.errors import SveError

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_HINT = "Write three words with spaces between them: --fail-if 'ece_top1_w15 > 0.03'"


@dataclass(frozen=True)
class Condition:
    """Fail when the metric at `key` is beyond `number`. `text`: with single spaces."""

    key: str
    sign: str
    number: float

    @property
    def text(self) -> str:
        return f"{self.key} {self.sign} {self.number:g}"

    def holds(self, value: float) -> bool:
        """Whether the value meets the condition, that is, fails."""
        return _COMPARE[self.sign](value, self.number)


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        SveError: not three words, an unknown comparison, or no finite number.
    """
    words = text.split()
    if len(words) != 3:
        raise SveError(f"--fail-if '{text}' has {len(words)} words and not three.", _HINT)
    key, sign, number = words
    if sign not in _COMPARE:
        raise SveError(f"--fail-if '{text}': '{sign}' is no comparison; known are {', '.join(_COMPARE)}.", _HINT)
    if not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        raise SveError(f"--fail-if '{text}': '{number}' is no plain finite number.", "Write it plainly: 0.03 (not 3 %).")
    return Condition(key, sign, float(number))
