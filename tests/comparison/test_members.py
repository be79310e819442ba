from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from sve_cli.comparison import compare_predictions, enough_members, member_curves, member_sentences, n_subsets
from sve_cli.comparison.members import subsets_of
from sve_cli.errors import SveError
from sve_cli.findings import Curve, CurvePoint
from sve_cli.metrics.aggregate import aggregate
from sve_cli.ood.detection import auroc_ood
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS
from sve_cli.statistics import bootstrap_counts, percentile_interval, seeded

Make = Callable[..., Predictions]


def chosen(system: Predictions, subset: tuple[int, ...]) -> Predictions:
    return replace(system, logits_MNC=system.logits_MNC[list(subset)])


def test_subsets() -> None:
    assert subsets_of(4, 2) == list(combinations(range(4), 2))
    assert len(subsets_of(16, 2)) == len(set(subsets_of(16, 2))) == 50 and math.comb(16, 2) == 120
    assert all(len(set(s)) == 8 and max(s) < 16 and list(s) == sorted(s) for s in subsets_of(16, 8, seed=1))
    assert subsets_of(16, 8, seed=1) == subsets_of(16, 8, seed=1) != subsets_of(16, 8, seed=2)
    assert n_subsets(4) == 15 and n_subsets(16) == 16 + 13 * 50 + 16 + 1


@pytest.mark.parametrize("name", ["nll", "ece_top1_w15", "disagreement"])
def test_every_point_is_the_mean_over_all_subsets(make: Make, name: str) -> None:
    system, metric = make(members=4), METRICS.resolve(name)
    (curve,) = member_curves(system, metrics=[name], bootstrap=80, seed=5)
    sizes = [2, 3, 4] if name == "disagreement" else [1, 2, 3, 4]
    assert [point.members for point in curve.points] == sizes and curve.n == 60
    weights = np.concatenate(list(bootstrap_counts(60, 80, seeded(5, "bootstrap"))), axis=1)
    drawn = {}
    for point in curve.points:
        views = [aggregate(chosen(system, subset)) for subset in combinations(range(4), point.members)]
        values = [metric.compute(view) for view in views]
        assert point.subsets == len(views) and point.every
        assert (point.value, point.smallest, point.largest) == pytest.approx((np.mean(values), min(values), max(values)))
        drawn[point.members] = np.mean([metric.prepare(view, 15)(weights) for view in views], axis=0)
        resampled = drawn[point.members]
        bias = resampled.mean() - point.value
        moved = -bias if abs(bias) > 3 * resampled.std() / np.sqrt(80) + 1e-12 else 0.0  # less is chance
        low, high = percentile_interval(resampled, 0.95)
        assert (point.low, point.high) == pytest.approx((max(low + moved, 0.0), high + moved))
        assert point.low <= point.value <= point.high and (moved < 0) == (name == "ece_top1_w15")
    for point in curve.points:
        gap = drawn[point.members] - drawn[4]
        assert point.difference == pytest.approx(point.value - curve.points[-1].value)
        low, high = percentile_interval(gap, 0.95)
        moved = point.difference - gap.mean()
        moved = moved if abs(moved) > 3 * gap.std() / np.sqrt(80) + 1e-12 else 0.0  # less is chance
        assert (point.difference_low, point.difference_high) == pytest.approx((low + moved, high + moved), abs=1e-12)
    last = curve.points[-1]
    assert (last.difference, last.difference_low, last.difference_high) == (0.0, 0.0, 0.0)


def test_a_point_agrees_with_a_comparison_of_one_subset(make: Make) -> None:
    system = make(members=2)
    curves = member_curves(chosen(system, (0, 0)), metrics=["nll"], bootstrap=100)
    # Two equal members: one of them is the whole, to the bit of a mean of two equal probabilities.
    assert curves[0].points[0].difference == pytest.approx(0.0, abs=1e-12) and enough_members(curves) == 1
    (row,) = compare_predictions(system, system.member(0), metrics=["nll"], bootstrap=100, permutations=0)
    (curve,) = member_curves(system, metrics=["nll"], bootstrap=100)
    (other,) = compare_predictions(system, system.member(1), metrics=["nll"], bootstrap=100, permutations=0)
    assert curve.points[0].difference == pytest.approx((row.difference + other.difference) / 2)


def test_ood_sets_are_scored_by_entropy_and_mutual_information(make: Make) -> None:
    test = make(members=3)
    far = replace(make(n=20, members=3, data_seed=4, skill=0.0, dataset="far"), labels_N=np.full(20, -1))
    steps: list[int] = []
    curves = member_curves(test, [far], metrics=["accuracy"], bootstrap=50, progress=lambda: steps.append(1))
    assert [c.key for c in curves] == ["accuracy", "ood.far.entropy.auroc_ood", "ood.far.mutual_information.auroc_ood"]
    assert len(steps) == n_subsets(3) == 7 and curves[1].n == 80
    for curve, name in zip(curves[1:], ("entropy_N", "mutual_information_N"), strict=True):
        for point in curve.points:
            subsets = combinations(range(3), point.members)
            sides = [[getattr(aggregate(chosen(p, s)), name) for p in (test, far)] for s in subsets]
            assert point.value == pytest.approx(np.mean([auroc_ood(*side) for side in sides]))
            assert point.low < point.value < point.high
    assert [p.members for p in curves[2].points] == [2, 3], "one member has no mutual information"


@pytest.mark.slow
def test_many_members_are_sampled(make: Make) -> None:
    (curve,) = member_curves(make(n=20, members=9), metrics=["nll"], bootstrap=20)
    assert [(p.subsets, p.every) for p in curve.points] == [
        (9, True), (36, True), (50, False), (50, False), (50, False), (50, False), (36, True), (9, True), (1, True)
    ]  # fmt: skip
    values = [p.value for p in curve.points if p.every]
    assert values == sorted(values, reverse=True), "by Jensen, more members never raise the NLL, over all subsets"
    again, other = (member_curves(make(n=20, members=9), metrics=["nll"], bootstrap=20, seed=s)[0] for s in (0, 1))
    assert again == curve and other.points[4].value != curve.points[4].value


def point(members: int, value: float, low: float, high: float) -> CurvePoint:
    return CurvePoint(members, 1, True, value, value - 0.01, value + 0.02, value, value, value - 0.5, low, high)


def nll_curve(*points: CurvePoint) -> list[Curve]:
    return [Curve("nll", "nll", "", "NLL", "lower", "", 10, list(points))]


def test_how_many_are_enough_and_how_it_is_said() -> None:
    whole = point(3, 0.5, 0.0, 0.0)
    inside = nll_curve(point(1, 0.6, 0.05, 0.15), point(2, 0.52, -0.01, 0.05), whole)
    assert enough_members(inside) == 2
    first, alone = member_sentences(inside)
    assert first.startswith("2 of the 3 members are enough here: the NLL is 0.5200 on average, and 0.5000 with all")
    assert "+0.0200 has an interval (-0.0100 to +0.0500) that holds 0" in first
    assert alone == "One member alone has an NLL of 0.6000 on average (0.5900 to 0.6200)."
    close = nll_curve(point(1, 0.504, 0.001, 0.01), point(2, 0.503, 0.001, 0.004), whole)
    assert enough_members(close) == 1
    assert "1 of the 3 members is enough" in member_sentences(close)[0] and "less than 1 % of it" in member_sentences(close)[0]
    all_of_them = nll_curve(point(1, 0.6, 0.05, 0.15), point(2, 0.52, 0.01, 0.05), whole)
    assert enough_members(all_of_them) == 3
    said = member_sentences(all_of_them)[0]
    assert said.startswith("All 3 members are worth having: with 2 the NLL is 0.5200") and "(+0.0100 to +0.0500)" in said
    assert enough_members([]) is None and "needs labels" in member_sentences([])[0]


def test_without_labels_and_with_one_member(make: Make) -> None:
    system = make(members=2)
    unknown = replace(system, labels_N=np.full(60, -1))
    curves = member_curves(unknown, bootstrap=20)
    assert {c.key for c in curves} == {
        "disagreement",
        "variation_ratio_mean",
        "entropy_mean",
        "expected_entropy_mean",
        "mutual_information_mean",
    }
    assert enough_members(curves) is None
    with pytest.raises(SveError, match="have one member"):
        member_curves(make(members=1))
    with pytest.raises(SveError, match="no metric that these predictions allow"):
        member_curves(unknown, metrics=["nll"])
