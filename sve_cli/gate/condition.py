"""`--fail-if 'ece_top1_w15 > 0.03'`: an address, a comparison, a number. Read by hand, never evaluated.

An address with spaces or quotes stands in double quotes, inside which a backslash comes before " and before a backslash.
"""

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
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"(?=\s)')
_HINT = "Write three words with spaces between them: --fail-if 'ece_top1_w15 > 0.03'; an address with spaces in double quotes."


@dataclass(frozen=True)
class Condition:
    """Fail when the metric at `key` is beyond `number`. `text`: with single spaces."""

    key: str
    sign: str
    number: float

    @property
    def text(self) -> str:
        return f"{_quoted(self.key)} {self.sign} {self.number:g}"

    def holds(self, value: float) -> bool:
        """Whether the value meets the condition, that is, fails."""
        return _COMPARE[self.sign](value, self.number)


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        SveError: not three words, a quote that does not end, an unknown comparison, or no finite number.
    """
    words = _words(text)
    if len(words) != 3:
        raise SveError(f"--fail-if '{text}' has {len(words)} words and not three.", _HINT)
    key, sign, number = words
    if sign not in _COMPARE:
        raise SveError(f"--fail-if '{text}': '{sign}' is no comparison; known are {', '.join(_COMPARE)}.", _HINT)
    if not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        raise SveError(f"--fail-if '{text}': '{number}' is no plain finite number.", "Write it plainly: 0.03 (not 3 %).")
    return Condition(key, sign, float(number))


def _words(text: str) -> list[str]:
    """The words, the first of which may be quoted."""
    stripped = text.strip()
    if not stripped.startswith('"'):
        return stripped.split()
    quoted = _QUOTED.match(stripped)
    if quoted is None or not quoted[1]:
        hint = "Quote the address alone: --fail-if '\"slice.city.New York.accuracy\" < 0.8'"
        raise SveError(f"--fail-if '{text}': the quoted address does not end with a quote and a space, or is empty.", hint)
    return [re.sub(r"\\(.)", r"\1", quoted[1]), *stripped[quoted.end() :].split()]


def _quoted(key: str) -> str:
    if key.split() == [key] and '"' not in key:
        return key
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
