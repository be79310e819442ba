from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import permutation_test, rankdata

from sve_cli.comparison import compare_ood, compare_predictions, compare_seeds, holm, n_needed
from sve_cli.comparison.paired import Settings, Statistic, differences
from sve_cli.errors import SveError
from sve_cli.findings import TIE, Difference
from sve_cli.metrics.aggregate import aggregate
from sve_cli.ood.detection import auroc_ood
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

Make = Callable[..., Predictions]
Say = Callable[[np.ndarray, list[int]], Predictions]


def only(rows: list[Difference]) -> Difference:
    (row,) = rows
    return row


def by_key(rows: list[Difference]) -> dict[str, Difference]:
    return {row.key: row for row in rows}


def test_differences_by_hand(said: Say) -> None:
    a = said(np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1]]), [0, 0, 1, 0])
    b = said(np.array([[0.9, 0.1], [0.6, 0.4], [0.25, 0.75], [0.9, 0.1]]), [0, 0, 1, 0])
    rows = by_key(compare_predictions(a, b, bootstrap=50, permutations=50))
    # A: right, wrong, wrong (the first of equals), right. B: all right.
    assert (rows["accuracy"].reference, rows["accuracy"].other, rows["accuracy"].difference) == (0.5, 1.0, 0.5)
    nll = (math.log(0.8 / 0.9) + math.log(0.4 / 0.6) + math.log(0.5 / 0.75)) / 4
    assert rows["nll"].difference == pytest.approx(nll, abs=1e-6)
    brier = (2 * 0.1**2 + 2 * 0.4**2 + 2 * 0.25**2) / 4 - (2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.5**2) / 4
    assert rows["brier"].difference == pytest.approx(brier, abs=1e-6)
    # Bins of a fifteenth. A: .8 | .6 | .5 | .9 all apart: gaps .2 .6 .5 .1. B: two at .9, .6, .75: gaps .1 .1 .4 .25.
    assert rows["ece_top1_w15"].reference == pytest.approx((0.2 + 0.6 + 0.5 + 0.1) / 4, abs=1e-6)
    assert rows["ece_top1_w15"].other == pytest.approx((0.1 + 0.1 + 0.4 + 0.25) / 4, abs=1e-6)
    assert all(row.n == 4 and row.direction in ("higher", "lower", "none") for row in rows.values())
    assert "disagreement" not in rows and "mutual_information_mean" not in rows, "one network has no members to disagree"


def test_each_side_keeps_its_own_weights(make: Make) -> None:
    a, b = make(seed=1, members=2), make(seed=2, members=2)
    ways = ("weighted:0.9,0.1", "probs")
    rows = by_key(compare_predictions(a, b, ways, metrics=["nll", "brier"], bootstrap=50, permutations=0))
    for name in ("nll", "brier"):
        values = [METRICS.resolve(name).compute(aggregate(system, way)) for system, way in zip((a, b), ways, strict=True)]
        assert [rows[name].reference, rows[name].other] == pytest.approx(values)
        assert rows[name].reference != pytest.approx(METRICS.resolve(name).compute(aggregate(a)))
    seeds = (["weighted:0.9,0.1", "weighted:0.2,0.8"], "probs")
    row = by_key(compare_seeds([a, b], [a], seeds, metrics=["nll"], bootstrap=50, permutations=0))["nll"]
    own = [METRICS.resolve("nll").compute(aggregate(system, way)) for system, way in zip((a, b), seeds[0], strict=True)]
    assert row.reference == pytest.approx(sum(own) / 2), "every seed has weights of its own"
    with pytest.raises(SveError, match="Unknown aggregate"):
        compare_predictions(a, b, ("probs", "median"))


def test_values_are_those_of_a_report(make: Make) -> None:
    a, b = make(seed=1, members=3), make(seed=2, members=2)
    for how, bins in (("probs", 15), ("logits", 7)):
        rows = compare_predictions(a, b, how, bins, bootstrap=50, permutations=0)
        names = [name for name in METRICS if "soft" not in name]
        assert [row.key for row in rows] == [METRICS.resolve(name).key(bins) for name in names]
        for row, name in zip(rows, names, strict=True):
            metric = METRICS.resolve(name)
            values = [metric.compute(aggregate(system, how), bins) for system in (a, b)]
            assert [row.reference, row.other] == pytest.approx(values) and row.definition == metric.definition(bins)
            assert row.p_value is None and row.p_holm is None


def test_a_system_compared_with_itself(make: Make) -> None:
    a = make(members=3)
    for row in compare_predictions(a, a, bootstrap=100, permutations=100):
        assert (row.difference, row.low, row.high, row.standard_error) == (0.0, 0.0, 0.0, 0.0), row.key
        assert (row.p_value, row.p_holm, row.n_needed, row.verdict) == (1.0, 1.0, None, TIE), row.key


def test_the_same_seed_gives_the_same_numbers_and_sides_mirror(make: Make) -> None:
    a, b = make(seed=1, members=2), make(seed=2, members=2, noise=0.3)
    rows = compare_predictions(a, b, bootstrap=100, permutations=100, seed=3)
    assert compare_predictions(a, b, bootstrap=100, permutations=100, seed=3) == rows
    assert compare_predictions(a, b, bootstrap=100, permutations=100, seed=4) != rows
    for row, back in zip(rows, compare_predictions(b, a, bootstrap=100, permutations=100, seed=3), strict=True):
        assert (back.low, back.high) == pytest.approx((-row.high, -row.low), abs=1e-12)
        assert back.p_value == row.p_value and back.is_tie == row.is_tie


def nll_of(system: Predictions) -> np.ndarray:
    view = aggregate(system)
    return -view.log_probs_NC[np.arange(view.n), view.labels_N]


def test_p_value_of_an_additive_metric_against_scipy(make: Make) -> None:
    for data_seed in range(3):
        a, b = (make(n=9, seed=s, data_seed=data_seed, noise=noise) for s, noise in ((1, 1.5), (2, 0.4)))

        def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
            return np.asarray(y.mean(axis=axis) - x.mean(axis=axis))

        exact = permutation_test((nll_of(a), nll_of(b)), statistic, permutation_type="samples", n_resamples=np.inf).pvalue
        row = only(compare_predictions(a, b, metrics=["nll"], bootstrap=50, permutations=20_000))
        assert row.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_a_clear_difference_has_the_smallest_p_there_can_be(make: Make) -> None:
    row = only(compare_predictions(make(noise=9.0), make(noise=0.0), metrics=["nll"], bootstrap=50, permutations=99))
    assert row.p_value == pytest.approx(1 / 100) and row.verdict == "B better"


def swapped(a: Predictions, b: Predictions) -> Iterator[tuple[Predictions, Predictions]]:
    """Every way of exchanging the outputs of two systems."""
    for choice in product((False, True), repeat=a.n_samples):
        swap = np.array(choice)[None, :, None]
        yield tuple(  # type: ignore[misc]
            replace(x, logits_MNC=np.where(swap, y.logits_MNC, x.logits_MNC)) for x, y in ((a, b), (b, a))
        )


@pytest.mark.parametrize("name", ["ece_top1_w15", "ece_top1_m15", "ece_class_w15", "aurc", "macro_f1", "mce_top1_w15"])
def test_p_value_of_what_is_no_mean_against_every_swap(make: Make, name: str) -> None:
    a, b = make(n=6, seed=1, noise=1.5), make(n=6, seed=2, noise=0.4)
    metric = METRICS.resolve(name)
    found = np.array([metric.compute(aggregate(y), 4) - metric.compute(aggregate(x), 4) for x, y in swapped(a, b)])
    exact = float((np.abs(found) >= abs(found[0]) - 1e-12).mean())
    row = only(compare_predictions(a, b, bins=4, metrics=[name], bootstrap=50, permutations=4000))
    drawn = 1000 if metric.max_resamples else 4000
    assert row.difference == pytest.approx(found[0])
    assert row.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / drawn) + 2 / drawn)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nll", "ece_top1_w15"])
def test_equal_systems_are_told_apart_in_five_percent_of_data_sets(make: Make, name: str) -> None:
    tests = 200
    p = []
    for k in range(tests):
        a, b = make(n=40, seed=1, data_seed=k), make(n=40, seed=2, data_seed=k)
        p.append(only(compare_predictions(a, b, bins=5, metrics=[name], bootstrap=2, permutations=99)).p_value or 0.0)
    below = sum(value <= 0.05 for value in p)
    # 200 x 5 % = 10, standard deviation 3.1
    assert 2 <= below <= 19, below
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_the_interval_holds_the_true_difference(said: Say) -> None:
    """Right with probability 0.65 and 0.6 + 0.4 x 0.2 = 0.68, the two dependent: the true difference is 0.03."""
    rng, inside, spread = np.random.default_rng(0), 0, []
    for _ in range(150):
        drawn = rng.random((120, 1))
        right_A, right_B = (drawn < 0.65)[:, 0], ((drawn < 0.75) & (drawn > 0.15) | (rng.random((120, 1)) < 0.2))[:, 0]
        a, b = (said(np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]]), [0] * 120) for right in (right_A, right_B))
        row = only(compare_predictions(a, b, metrics=["accuracy"], bootstrap=200, permutations=0))
        inside += row.low <= 0.03 <= row.high
        gaps = right_B.astype(float) - right_A
        spread.append(row.standard_error / (gaps.std() / math.sqrt(120)))
    assert 134 <= inside <= 150, "95 % of 150 is 142.5, standard deviation 2.7"
    assert np.mean(spread) == pytest.approx(1.0, abs=0.02), "the paired standard error, not that of two independent sides"


def test_the_interval_lies_around_the_difference(make: Make) -> None:
    # A resample's calibration error is biased upward, more for the flatter system: the plain percentiles would carry that.
    sharp = make(n=400, seed=1, skill=4.0, noise=0.1)
    flat = replace(sharp, logits_MNC=sharp.logits_MNC * np.float32(0.4))
    row = only(compare_predictions(sharp, flat, metrics=["ece_class_w15"], bootstrap=200, permutations=0))
    middle, width = (row.low + row.high) / 2, row.high - row.low
    assert abs(middle - row.difference) < 0.15 * width


def test_samples_needed_by_hand() -> None:
    # z_.975 + z_.8 = 1.959964 + 0.841621 = 2.801585; 100 (2.801585 x 0.1 / 0.2)^2 = 196.2
    assert n_needed(100, 0.1, 0.2) == n_needed(100, 0.1, -0.2) == 197
    assert n_needed(100, 0.1, 2.801585 * 0.1) in (100, 101), "a difference of 2.8 standard errors needs what there is"
    assert n_needed(100, 0.1, 0.0) is None and n_needed(100, 0.0, 0.1) == 1


def test_samples_needed_is_in_the_row(make: Make) -> None:
    row = only(compare_predictions(make(seed=1), make(seed=2), metrics=["nll"], bootstrap=200, permutations=0))
    error = (row.high - row.low) / (2 * 1.959964)  # as the interval says it
    assert row.n_needed == math.ceil(60 * (2.8015852 * error / row.difference) ** 2)
    assert error == pytest.approx(row.standard_error, rel=0.2), "both are of the same resamples"


def test_a_few_resamples_far_away_ask_for_no_more_samples() -> None:
    """Most resamples give 0.1 to 0.2, one in a hundred gives 9: beyond the interval's ends, which show a clear difference."""

    def function(weights_NR: np.ndarray) -> np.ndarray:
        drawn = np.where(np.arange(weights_NR.shape[1]) % 100 == 99, 9.0, 0.1 + 0.1 * weights_NR[0] / 4.0)
        return drawn if weights_NR.shape[1] > 1 else np.array([0.24])

    def zero(weights_NR: np.ndarray) -> np.ndarray:
        return np.zeros(weights_NR.shape[1])

    statistic = Statistic("x", "x", "", "X", "lower", "", [zero], [function], [zero])
    [row] = differences([statistic], [60], Settings("probs", 15, 1000, 0, 0.95, 0))
    assert row.low > 0 and row.standard_error > 0.5 and row.n_needed is not None and row.n_needed < 60


def made(p: float | None, low: float = 1.0, high: float = 2.0, difference: float = 1.5, direction: str = "lower") -> Difference:
    return Difference("k", "nll", "", "NLL", direction, "", 10, 0.0, difference, difference, low, high, 0.1, p, None, 5)  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    rows = holm([made(0.01), made(0.04), made(None), made(0.03), made(0.9)])
    # ascending .01 .03 .04 .9 times 4 3 2 1, never falling
    assert [row.p_holm for row in rows] == [pytest.approx(0.04), pytest.approx(0.09), None, pytest.approx(0.09), pytest.approx(0.9)]
    assert [row.p_holm for row in holm([made(0.7), made(0.6)])] == [1.0, 1.0]


def test_verdicts() -> None:
    assert made(0.1).verdict == "A better" and made(0.1, direction="higher").verdict == "B better"
    assert made(0.1, -2, -1, -1.5).verdict == "B better" and made(0.1, -2, -1, -1.5, "higher").verdict == "A better"
    assert made(0.1, direction="none").verdict == "B higher" and made(0.1, -2, -1, -1.5, "none").verdict == "A higher"
    assert made(0.1, -1, 2).verdict == made(0.1, 0.0, 2).verdict == TIE == "tie (inside the interval)"
    assert made(0.1, 1, 2, -0.5).verdict == TIE, "the interval and the difference contradict each other"


def test_seeds_are_averaged_and_share_their_resamples(make: Make) -> None:
    references, others = [make(seed=s, noise=1.5) for s in (1, 2, 3)], [make(seed=s, noise=0.5) for s in (4, 5)]
    names, options = ["nll", "ece_top1_w15"], {"bootstrap": 200, "permutations": 100}
    pooled = compare_seeds(references, others, metrics=names, **options)
    for row, name in zip(pooled, names, strict=True):
        values = [[METRICS.resolve(name).compute(aggregate(p)) for p in side] for side in (references, others)]
        assert row.reference == pytest.approx(np.mean(values[0])) and row.other == pytest.approx(np.mean(values[1]))
    # For a mean over samples, averaging seeds is averaging each sample's loss first.
    gaps = np.mean([nll_of(p) for p in others], axis=0) - np.mean([nll_of(p) for p in references], axis=0)
    assert pooled[0].standard_error == pytest.approx(gaps.std() / math.sqrt(60), rel=0.15)
    single = compare_predictions(references[0], others[0], metrics=names, **options)
    same = compare_seeds(references[:1] * 2, others[:1] * 3, metrics=names, **options)
    for one, many in zip(single, same, strict=True):
        assert (one.difference, one.low, one.high) == pytest.approx((many.difference, many.low, many.high))
        assert one.p_value == many.p_value


def test_swapping_seeds_against_every_swap(make: Make) -> None:
    a, b, c = make(n=6, seed=1, noise=1.5), make(n=6, seed=2, noise=0.5), make(n=6, seed=3, noise=0.5)
    metric = METRICS.resolve("ece_top1_w15")

    def value(p: Predictions) -> float:
        return metric.compute(aggregate(p), 4)

    pairs = zip(swapped(a, b), swapped(a, c), strict=True)
    found = np.array([(value(y1) + value(y2)) / 2 - (value(x1) + value(x2)) / 2 for (x1, y1), (x2, y2) in pairs])
    exact = float((np.abs(found) >= abs(found[0]) - 1e-12).mean())
    row = only(compare_seeds([a], [b, c], bins=4, metrics=["ece_top1_w15"], bootstrap=50, permutations=4000))
    assert row.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000) + 1e-3)


def test_labels_and_members_decide_which_metrics_there_are(make: Make) -> None:
    a, b = make(seed=1, members=2), make(seed=2, members=2)
    options = {"bootstrap": 50, "permutations": 0}
    unknown = np.where(np.arange(60) < 20, a.labels_N, -1)
    rows = by_key(compare_predictions(replace(a, labels_N=unknown), replace(b, labels_N=unknown), **options))
    assert rows["nll"].n == 20 and rows["entropy_mean"].n == 60
    known = by_key(compare_predictions(a.subset(np.arange(20)), b.subset(np.arange(20)), **options))
    assert rows["nll"].difference == pytest.approx(known["nll"].difference)
    assert (rows["nll"].low, rows["nll"].high) == pytest.approx((known["nll"].low, known["nll"].high))
    none = [replace(system, labels_N=np.full(60, -1)) for system in (a, b)]
    keys = ["disagreement", "variation_ratio_mean", "entropy_mean", "expected_entropy_mean", "mutual_information_mean"]
    assert [row.key for row in compare_predictions(*none, **options)] == keys
    with pytest.raises(SveError, match="no metric that both sides have"):
        compare_predictions(*none, metrics=["nll"], **options)
    with pytest.raises(SveError, match="Did you mean 'accuracy'"):
        compare_predictions(a, b, metrics=["acuracy"], **options)
    for bad in ({"bootstrap": 1}, {"permutations": -1}, {"confidence": 1.0}, {"aggregate": "votes"}):
        with pytest.raises(SveError):
            compare_predictions(a, b, **{**options, **bad})
    with pytest.raises(SveError, match="at least one system on each side"):
        compare_seeds([], [b])


def test_dear_metrics_take_fewer_resamples() -> None:
    seen = {"bootstrap": 0, "permutation": 0}

    def counted(kind: str) -> Callable[[np.ndarray], np.ndarray]:
        def function(weights_NR: np.ndarray) -> np.ndarray:
            seen[kind] += weights_NR.shape[1]
            return np.asarray(weights_NR.mean(axis=0))

        return function

    described = ("k", "nll", "", "NLL", "lower", "")
    statistic = Statistic(*described, [counted("bootstrap")], [lambda w: w[0]], [counted("permutation")], 30)  # type: ignore[arg-type]
    differences([statistic], [50], Settings("probs", 15, 500, 500, 0.95, 0))
    assert seen["bootstrap"] == 30 + 1, "and once for the value"
    assert seen["permutation"] == 2 * (5 * 30 + 1), "both sides, and once as observed"


def ood_of(make: Make, members: int, seed: int, n: int = 25) -> Predictions:
    out = make(n=n, members=members, seed=seed, data_seed=9, skill=0.0, noise=0.3 + 0.2 * seed, dataset="far")
    return replace(out, labels_N=np.full(n, -1))


def test_auroc_is_compared_on_both_sets(make: Make) -> None:
    a, b = ((make(seed=s, members=m), ood_of(make, m, s)) for s, m in ((1, 2), (2, 3)))
    rows = compare_ood([a], [b], bootstrap=200, permutations=100)
    assert [row.key for row in rows] == ["ood.far.entropy.auroc_ood", "ood.far.mutual_information.auroc_ood"]
    for row, name in zip(rows, ("entropy_N", "mutual_information_N"), strict=True):
        values = [auroc_ood(getattr(aggregate(test), name), getattr(aggregate(far), name)) for test, far in (a, b)]
        assert [row.reference, row.other] == pytest.approx(values)
        assert row.low < row.difference < row.high and row.n == 85 and row.direction == "higher" and row.group == "far"
    one = make(seed=3), ood_of(make, 1, 3)
    assert [row.key for row in compare_ood([a], [one], bootstrap=50, permutations=0)] == ["ood.far.entropy.auroc_ood"]
    for row in compare_ood([a], [a], bootstrap=50, permutations=50):
        assert (row.difference, row.p_value, row.verdict) == (0.0, 1.0, TIE)
    averaged = compare_ood([a, a], [b], scores=["entropy"], bootstrap=200, permutations=100)
    assert only(averaged).p_value == rows[0].p_value and only(averaged).low == pytest.approx(rows[0].low)


@pytest.mark.slow
def test_p_value_of_an_auroc_against_every_swap_of_ranks(make: Make) -> None:
    sides = [(make(n=5, seed=s, noise=noise), ood_of(make, 1, s, 4)) for s, noise in ((1, 2.0), (2, 0.2))]
    cool = [replace(p, logits_MNC=p.logits_MNC * np.float32(0.05)) for p in sides[1]]  # its entropies are all near ln 3
    entropies = [np.concatenate([aggregate(p).entropy_N for p in side]) for side in (sides[0], cool)]

    def exact_p(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
        found = []
        for choice in product((False, True), repeat=9):
            x, y = np.where(choice, second, first), np.where(choice, first, second)
            found.append(auroc_ood(y[:5], y[5:]) - auroc_ood(x[:5], x[5:]))
        return found[0], float((np.abs(found) >= abs(found[0]) - 1e-12).mean())

    difference, exact = exact_p(rankdata(entropies[0]), rankdata(entropies[1]))
    assert abs(exact_p(*entropies)[1] - exact) > 0.1, "on the scores themselves it would be another test"
    row = only(compare_ood([sides[0]], [(cool[0], cool[1])], bootstrap=50, permutations=4000))
    assert row.difference == pytest.approx(difference)
    assert row.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000) + 1e-3)
