"""When a gate fails, and what it says that it can see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.gate import (
    Against,
    Alone,
    GateSettings,
    GateSpec,
    Level,
    changed_samples,
    judge_condition,
    judge_limit,
    judge_worsening,
    metrics_by_key,
    parse_condition,
    samples_of,
    share_level,
)
from sve_cli.gate.rule import alone_from
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.verdict import Verdict
from sve_cli.workflows.gate import compare_samples

LEVEL = Level(0.95)


def seen(value: float, baseline: float, error: float = 0.002, changed: int | None = 1000) -> Against:
    reach, d = 1.96 * error, value - baseline
    return Against(value, baseline, d - reach, d + reach, error, 4500, changed, error, 0.0)


def test_the_slack_is_what_the_lower_bound_must_exceed() -> None:
    gate = GateSpec(slack=0.01)
    assert judge_worsening("ece_top1_w15", "lower", gate, seen(0.05, 0.03), LEVEL).outcome == "fail"
    assert judge_worsening("ece_top1_w15", "lower", gate, seen(0.043, 0.03), LEVEL).outcome == "pass"
    assert judge_worsening("accuracy", "higher", gate, seen(0.88, 0.90), LEVEL).outcome == "fail"
    better = judge_worsening("accuracy", "higher", gate, seen(0.92, 0.90), LEVEL)
    assert better.outcome == "pass" and better.worsening == pytest.approx(-0.02) and "better by 2.00 %" in better.sentence
    relative = judge_worsening("nll", "lower", GateSpec(slack=0.001, relative_slack=0.1), seen(0.42, 0.4), LEVEL)
    assert relative.allowed == pytest.approx(0.04) and relative.outcome == "pass"


def test_few_changed_samples_and_rounding_are_no_evidence() -> None:
    same = judge_worsening("nll", "lower", GateSpec(slack=0.0), seen(0.400005, 0.4, error=0.0, changed=4500), LEVEL)
    assert same.outcome == "pass", "5e-6 worse for certain: arithmetic"
    flips = [judge_worsening("accuracy", "higher", GateSpec(slack=0.0), flipped(k), LEVEL).outcome for k in (1, 4, 8, 12)]
    assert flips == ["pass", "pass", "fail", "fail"]
    assert judge_worsening("accuracy", "higher", GateSpec(slack=0.0), flipped(1), LEVEL).low == -math.inf


def test_what_changed_is_what_the_metric_reads() -> None:
    """The same decisions and confidences, another probability of the label: metrics of the top class cannot see it, others must."""
    labels_N = np.arange(40) % 3
    probs_NC = np.full((40, 3), 0.1)
    probs_NC[:, 0] = 0.6
    probs_NC[:, 1:] = [0.3, 0.1]
    other_NC = probs_NC[:, [0, 2, 1]]
    one, two = (samples_of(aggregate(Predictions(np.log(p)[None].astype(np.float32), labels_N, [str(i) for i in range(40)],
                                                 list("abc"))), [str(i) for i in range(40)], list("abc"))
                for p in (probs_NC, other_NC))  # fmt: skip
    assert [changed_samples(one, two, key) for key in ("accuracy", "ece_top1_w15", "aurc")] == [0, 0, 0]
    wrong = int((labels_N != 0).sum())
    assert [changed_samples(one, two, key) for key in ("nll", "brier", "ece_class_w15", "macro_f1")] == [wrong] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_passed(bad: float) -> None:
    with pytest.raises(SveError, match="'nll' cannot be judged"):
        judge_worsening("nll", "lower", GateSpec(slack=0.1), seen(0.4, bad), LEVEL)
    with pytest.raises(SveError, match="'nll' cannot be judged"):
        judge_limit("nll", "lower", GateSpec(limit=0.1), Alone(bad, 0.1, 0.0, bad, bad, 9), LEVEL)
    with pytest.raises(SveError, match="'nll' cannot be judged"):
        judge_condition(parse_condition("nll > 0.1"), bad, "lower", 9)


def test_few_resamples_do_not_make_a_limit_stricter() -> None:
    """200 resamples hardly reach the tail that twenty checks share: the bound is then at least the normal one."""
    values_R = np.random.default_rng(0).normal(0.5, 0.01, size=200)
    level = share_level(0.95, 20)
    found = alone_from(lambda weights_NR: np.full(weights_NR.shape[1], 0.5), values_R, 900, level)
    middle = 1.0 - float(values_R.mean())
    reach = level.quantile() * found.error - 1e-12
    assert found.low <= middle - reach and found.high >= middle + reach
    many = alone_from(lambda weights_NR: np.full(weights_NR.shape[1], 0.5), np.tile(values_R, 50), 900, LEVEL)
    assert many.low == pytest.approx(1.0 - float(np.quantile(np.tile(values_R, 50), 0.975)))


def flipped(k: int) -> Against:
    """k of 200 samples went from right to wrong, and none the other way."""
    error = math.sqrt(k) / 200
    return Against(0.9 - k / 200, 0.9, -k / 200 - 1.96 * error, -k / 200 + 1.96 * error, error, 200, k, 0.02, 0.0)


def test_what_is_within_the_slack_is_called_so() -> None:
    for value, word in ((0.030, "the same (paired, interval"), (0.035, "worse by 0.50 %"), (0.040, "worse by 1.00 %")):
        sentence = judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.005), seen(value, 0.03, error=0.01), LEVEL).sentence
        assert word in sentence and (", not all beyond the slack" in sentence) == (value == 0.040), sentence
        assert (", within the slack of 0.50 %." in sentence) == (value < 0.040), sentence


def test_what_can_be_seen() -> None:
    check = judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.01), seen(0.03, 0.03), LEVEL)
    assert check.detectable == pytest.approx(0.01 + (1.95996 + 0.84162) * 0.002, rel=1e-4)
    assert check.detect == pytest.approx(0.03) and not check.blind
    assert judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.0, detect=0.005), seen(0.03, 0.03), LEVEL).blind
    same = replace(seen(0.03, 0.03, error=0.0), usual=0.004)
    again = judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.0), same, LEVEL)
    assert again.detectable == pytest.approx(2.8016 * 0.45 * 0.004, rel=1e-3), "a re-evaluation does not make it all-seeing"


def test_limits_and_conditions() -> None:
    sure, maybe = Alone(0.06, 0.004, 0.0, 0.052, 0.068, 900), Alone(0.052, 0.004, 0.0, 0.044, 0.06, 900)
    gate = GateSpec(limit=0.05)
    assert judge_limit("ece_top1_w15", "lower", gate, sure, LEVEL).outcome == "fail"
    unsure = judge_limit("ece_top1_w15", "lower", gate, maybe, LEVEL)
    assert unsure.outcome == "pass" and "no more than chance" in unsure.notes[0]
    low = Alone(0.8, 0.01, 0.0, 0.78, 0.82, 900)
    assert judge_limit("accuracy", "higher", GateSpec(limit=0.85), low, LEVEL).outcome == "fail"
    assert judge_limit("accuracy", "higher", GateSpec(limit=0.75), low, LEVEL).outcome == "pass"
    assert judge_condition(parse_condition("ece > 0.05"), 0.0501, "lower", 9).outcome == "fail"
    odd = judge_condition(parse_condition("accuracy > 0.05"), 0.04, "higher", 9)
    assert odd.outcome == "pass" and "fails when it is good" in odd.notes[0]


def test_the_level_is_shared() -> None:
    assert share_level(0.95, 5).confidence == pytest.approx(0.99) and share_level(0.95, 0).confidence == 0.95


def test_behaviour_in_short(make: Callable[..., Predictions]) -> None:
    """The short form of benchmarks/gate_power.py: 30 pairs without a change, 10 with one of 9 points, 6 too small."""
    metric = metrics_by_key(15)["ece_top1_w15"]

    def check(n: int, scale: float, k: int) -> tuple[str, bool]:
        pool = [make(n=1500, scale=s, seed=2 * k + i, noise=1.0) for i, s in enumerate((1.5, scale))]
        rows = np.random.default_rng(k).permutation(1500)[:n]
        one, other = (samples_of(aggregate(p.subset(rows)), [str(r) for r in rows], p.classes) for p in pool)
        settings = GateSettings(bootstrap=100, seed=k)
        found = compare_samples(one, other, {"ece_top1_w15": metric}, 15, settings, LEVEL)["ece_top1_w15"]
        judged = judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.0), found, LEVEL)
        return judged.outcome, judged.blind

    assert sum(check(1200, 1.5, k)[0] == "fail" for k in range(30)) <= 3
    assert sum(check(1200, 2.2, k)[0] == "fail" for k in range(10)) == 10
    assert all(check(100, 1.5, k)[1] for k in range(6)), "100 samples cannot show 2 points"


def test_rounding_is_no_change() -> None:
    seen = Against(0.1 + 0.2, 0.3, 5e-17, 5e-17, 0.0, 300, 0, 0.01, 0.0)
    check = judge_worsening("nll", "lower", GateSpec(slack=0.0), seen, Level(0.95))
    assert check.worsening == 0.0 and math.copysign(1.0, check.worsening) == 1.0 and " is the same (" in check.sentence
    tiny = judge_worsening("nll", "lower", GateSpec(slack=0.0), replace(seen, value=0.3 + 1e-6), Level(0.95))
    assert " is the same (" in tiny.sentence, "not: worse by 0.0000"


def test_the_verdict_counts_what_was_not_judged_and_what_sees_nothing() -> None:
    fine = judge_worsening("accuracy", "higher", GateSpec(slack=0.01), seen(0.9, 0.9), LEVEL)
    blind = judge_worsening("nll", "lower", GateSpec(slack=0.0, detect=1e-4), seen(0.3, 0.3), LEVEL)
    unjudged = replace(fine, key="brier", outcome="warn")
    for checks, sentence in (
        ([fine, fine], "All 2 checks passed."),
        ([fine, blind], "All 2 checks passed. 1 of 2 cannot see what it guards on so few samples."),
        ([fine, blind, unjudged], "2 of 3 checks passed; 1 could not be judged."),
        ([fine, replace(fine, outcome="fail"), unjudged], "1 of 3 checks failed: accuracy: worsening."),
    ):
        assert Verdict("run", "base", 900, checks).sentence == sentence
