"""Views of a gate's verdict: a table for the terminal, Markdown for a job summary, JUnit XML for a CI server."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Protocol

from sve_cli.render.markdown import bullets
from sve_cli.render.markdown import escape as md
from sve_cli.render.markdown import table as md_table
from sve_cli.render.tables import MISSING, Table, format_number, is_percent
from sve_cli.verdict import Check, Verdict

SUITE = "sve gate"


class Slack(Protocol):
    """What `slack_table` shows, see `gate.Learned`."""

    @property
    def key(self) -> str: ...
    @property
    def values(self) -> list[float]: ...
    @property
    def pairs(self) -> int: ...
    @property
    def usual(self) -> float: ...
    @property
    def largest(self) -> float: ...
    @property
    def before(self) -> float | None: ...
    @property
    def slack(self) -> float: ...


# Characters that XML 1.0 cannot hold at all.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
HOW_TO_READ = (
    "Worsening: how much worse than the baseline, in points where the metric is in percent; its interval in parentheses. A check "
    "fails when the whole interval lies beyond what is allowed. Detectable: the smallest true worsening that this many samples "
    "show with 80 % power."
)


def gate_table(verdict: Verdict) -> Table:
    """One line a check."""
    rows = []
    for check in verdict.checks:
        interval = f"{amount(check, check.low)} to {amount(check, check.high)}"
        has = check.low is not None and check.high is not None
        if check.rule == "worsening":
            worsening = MISSING if check.worsening is None else f"{amount(check, check.worsening, True)} ({interval})"
            value = amount(check, check.value)
        else:
            worsening, value = MISSING, amount(check, check.value) + (f" ({interval})" if has else "")
        allowed = f"{'slack' if check.rule == 'worsening' else 'limit'} {amount(check, check.allowed)}"
        seen = amount(check, check.detectable) + (" (blind)" if check.blind else "")
        rows.append([check.name, value, amount(check, check.baseline), worsening, allowed, seen, check.outcome.upper()])
    columns = ["Check", "Value", "Baseline", "Worsening", "Allowed", "Detectable", "Verdict"]
    strong = frozenset(i for i, check in enumerate(verdict.checks) if check.outcome == "fail")
    return Table(columns, rows, frozenset(range(1, 6)), strong)


def slack_table(learned: Sequence[Slack]) -> Table:
    """One line a metric of `sve gate calibrate`."""
    rows = []
    for one in learned:
        finite = sorted(one.values)
        shown = [_amount(metric_at(one.key), v) for v in (finite[0], finite[-1], one.usual, one.largest, one.before, one.slack)]
        rows.append([one.key, f"{shown[0]} to {shown[1]}", str(one.pairs), *shown[2:]])
    columns = ["Metric", "Values", "Pairs", "Usual worsening", "Largest", "Slack before", "Slack"]
    return Table(columns, rows, frozenset(range(1, 7)))


def amount(check: Check, value: float | None, signed: bool = False) -> str:
    """A number of the check's metric with one digit more than a report shows."""
    return _amount(metric_of(check), value, signed)


def _amount(metric: str, value: float | None, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    digits = len(format_number(metric, 0.0).partition(".")[2]) + 1
    shown = f"{100 * value if is_percent(metric) else value:{'+' if signed else ''}z.{digits}f}"
    return f"{shown} %" if is_percent(metric) else shown


def metric_of(check: Check) -> str:
    """The metric's key at the end of the check's address."""
    return metric_at(check.key.rsplit(" ", 2)[0].removesuffix('"') if check.rule == "condition" else check.key)


def metric_at(address: str) -> str:
    """The metric's key at the end of an address."""
    return address.rpartition(".")[2]


def warnings(verdict: Verdict) -> list[str]:
    """What weakens the verdict, in sentences: what it cannot see first."""
    found = [blind_sentence(check) for check in verdict.checks if check.blind]
    found += [check.sentence for check in verdict.checks if check.outcome == "warn"]
    found += [note for check in verdict.checks for note in check.notes]
    return [*found, *verdict.notes]


def blind_sentence(check: Check) -> str:
    """That the samples are too few for what the check is asked to guard."""
    what = "worsening" if check.rule == "worsening" else "distance beyond the limit"
    return (
        f"{check.name}: this gate cannot see what it guards. With {check.n:,} samples the smallest {what} that shows is "
        f"{amount(check, check.detectable)}, and {amount(check, check.detect)} must not pass unseen. Use more samples."
    )


def render_markdown(verdict: Verdict) -> str:
    """The verdict as GitHub-flavoured Markdown, to be appended to a job summary."""
    head = f"## Calibration gate: {'passed' if verdict.passed else 'failed'}"
    against = f" against {verdict.baseline}" if verdict.baseline else ""
    blocks = [head, md(f"{verdict.title}{against}, {verdict.n:,} samples. {verdict.sentence}"), md_table(gate_table(verdict))]
    failed = [check.sentence for check in verdict.failed]
    blocks += [bullets(failed), bullets([f"Warning: {text}" for text in warnings(verdict)]), md(HOW_TO_READ)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_junit(verdict: Verdict) -> str:
    """The verdict as JUnit XML: one test case a check, `failure` where it failed, `skipped` where there was no baseline."""
    failures = len(verdict.failed)
    skipped = sum(check.outcome == "warn" for check in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(failures), "errors": "0", "skipped": str(skipped), "time": "0"}
    root = ET.Element("testsuites", {"name": SUITE, **{k: v for k, v in counts.items() if k != "skipped"}})
    suite = ET.SubElement(root, "testsuite", {"name": _xml(f"{SUITE}: {verdict.title}"), **counts})
    for check in verdict.checks:
        case = ET.SubElement(suite, "testcase", {"classname": "sve.gate", "name": _xml(check.name), "time": "0"})
        if check.outcome == "fail":
            failure = ET.SubElement(case, "failure", {"message": _xml(check.sentence), "type": check.rule})
            failure.text = _xml("\n".join([check.sentence, *check.notes]))
        elif check.outcome == "warn":
            ET.SubElement(case, "skipped", {"message": _xml(check.sentence)})
        told = [check.sentence, *([blind_sentence(check)] if check.blind else []), *check.notes]
        ET.SubElement(case, "system-out").text = _xml("\n".join(told))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
