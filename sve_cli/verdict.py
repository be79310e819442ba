"""What a gate found: one check a rule, and the verdict on all. Their JSON, JUnit, Markdown and terminal views are in `render`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sve_cli.json_text import finite, to_json

VERDICT_SCHEMA = "sve-gate/1"
Rule = Literal["worsening", "limit", "condition"]
Outcome = Literal["pass", "fail", "warn"]


@dataclass(frozen=True)
class Check:
    """One rule applied to one metric. All numbers are plain (0.03, not 3 %).

    Attributes:
        key: the metric's report address; `label`: what people call it.
        rule: "worsening" against the baseline, "limit" of the value, "condition" of `--fail-if`.
        outcome: "warn" only where no baseline is there and the policy is to warn.
        sentence: why, in words.
        value, baseline: the metric of both sides, on the samples compared.
        worsening: how much worse than the baseline; negative is better.
        low, high: interval of the worsening, or of the value under a limit.
        allowed: the slack in force, or the limit.
        detectable: the smallest true worsening (or distance beyond the limit) that fails with 80 % power at this sample size.
        detect: the one that must not pass unseen.
        n: samples; `paired`: the same samples on both sides; None without a baseline.
    """

    key: str
    label: str
    rule: Rule
    outcome: Outcome
    sentence: str
    direction: Literal["higher", "lower", "none"] = "none"
    value: float | None = None
    baseline: float | None = None
    worsening: float | None = None
    low: float | None = None
    high: float | None = None
    allowed: float | None = None
    detectable: float | None = None
    detect: float | None = None
    n: int = 0
    paired: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def blind(self) -> bool:
        """Whether this sample size cannot show what the check is asked to guard."""
        return self.detectable is not None and self.detect is not None and not self.detectable <= self.detect

    @property
    def name(self) -> str:
        """The check in a few words, the same in every build: `ece_top1_w15: worsening`."""
        return self.key if self.rule == "condition" else f"{self.key}: {self.rule}"


@dataclass(frozen=True)
class Verdict:
    """All checks of one evaluation.

    Attributes:
        title: what was judged; `baseline`: what it was compared with, "" for nothing.
        notes: what weakens the whole; `settings`: confidence, bootstrap, …
    """

    title: str
    baseline: str
    n: int
    checks: list[Check]
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    schema: str = VERDICT_SCHEMA

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.outcome == "fail"]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        total, failed = len(self.checks), self.failed
        of = f"{len(failed)} of {total} checks" if total > 1 else "The check"
        if failed:
            return f"{of} failed: {', '.join(check.name for check in failed)}."
        if warned := sum(check.outcome == "warn" for check in self.checks):
            return f"{total - warned} of {total} checks passed; {warned} could not be judged."
        blind = sum(check.blind for check in self.checks)
        but = (
            f" {blind} of {total} cannot see what {'it guards' if blind == 1 else 'they guard'} on so few samples." if blind else ""
        )
        return f"All {total} checks passed.{but}" if total > 1 else f"The check passed.{but}"

    def document(self) -> dict[str, Any]:
        """What JSON says: the fields, the verdict, and what each check cannot see. Numbers that are not finite become null."""
        found = asdict(self) | {"passed": self.passed, "sentence": self.sentence}
        for check, shown in zip(self.checks, found["checks"], strict=True):
            shown["blind"] = check.blind
        return dict(finite(found))

    def to_json(self) -> str:
        """The JSON document."""
        return to_json(self.document())
