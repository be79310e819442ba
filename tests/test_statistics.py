from __future__ import annotations

import numpy as np
import pytest
from scipy.special import entr
from threadpoolctl import threadpool_info

from sve_cli.statistics import (
    bootstrap_counts,
    entropies_of,
    grouped_sums,
    log_softmax,
    mean_log_probs,
    one_blas_thread,
    percentile_interval,
    seeded,
    tie_groups,
    wilson_interval,
)


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (.8 + .192073) / 1.384146 = .716740, half width .226578 -> the textbook .4902 to .9433
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6) and high == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_counts_are_resamples() -> None:
    blocks = list(bootstrap_counts(50, 700, seeded(0, "t"), block=300))
    assert [b.shape for b in blocks] == [(50, 300), (50, 300), (50, 100)]
    counts = np.concatenate(blocks, axis=1)
    assert (counts.sum(axis=0) == 50).all() and (counts == np.round(counts)).all()
    # multinomial: mean 1, variance 1 - 1/50
    assert counts.mean() == pytest.approx(1.0)
    assert counts.var() == pytest.approx(0.98, abs=0.03)
    again = np.concatenate(list(bootstrap_counts(50, 700, seeded(0, "t"), block=100)), axis=1)
    assert (again == counts).all(), "the resamples must not depend on the block size"
    assert not (next(iter(bootstrap_counts(50, 300, seeded(1, "t")))) == blocks[0]).all()
    assert list(bootstrap_counts(5, 0, seeded(0, "t"))) == []


def test_interval_of_a_mean_has_the_textbook_width() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    means = np.concatenate([values @ w / 400 for w in bootstrap_counts(400, 4000, seeded(0, "t"))])
    low, high = percentile_interval(means, 0.95)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert low < values.mean() < high
    narrow = percentile_interval(means, 0.5)
    assert low < narrow[0] < narrow[1] < high


def test_grouped_sums_and_ties() -> None:
    group, n = tie_groups(np.array([0.5, 0.1, 0.5]))
    assert group.tolist() == [1, 0, 1] and n == 2
    weights = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 5.0]])
    assert grouped_sums(weights, group, 3, np.array([10.0, 1.0, 1.0])).tolist() == [[2, 1], [13, 5], [0, 0]]
    assert grouped_sums(weights, group, 2).tolist() == [[2, 1], [4, 5]]


def test_seeds_are_keyed_by_purpose() -> None:
    assert seeded(0, "a").integers(1 << 40) == seeded(0, "a").integers(1 << 40)
    assert len({int(seeded(s, p).integers(1 << 40)) for s in (0, 1) for p in "ab"}) == 4


def test_log_probabilities() -> None:
    logits = np.array([[[np.log(3), 0.0, 7.0]], [[0.0, 0.0, -np.inf]]])
    mask = np.array([[True, True, False]])
    assert np.exp(log_softmax(logits[0], mask)) == pytest.approx(np.array([[0.75, 0.25, 0.0]]))
    assert np.exp(mean_log_probs(logits, mask, "probs")) == pytest.approx(np.array([[0.625, 0.375, 0.0]]))
    odds = np.sqrt(3)
    assert np.exp(mean_log_probs(logits, mask, "logits"))[0] == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 0])


@pytest.mark.parametrize("scale", [1.0, 30.0, 400.0])  # probabilities down to e-1500, which float64 does not hold
@pytest.mark.parametrize("aggregate", ["probs", "weighted:0.7,0.0,0.3"])
def test_the_mean_of_probabilities_whatever_their_size(aggregate: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits, mask = scale * rng.normal(size=(3, 40, 4)), np.arange(4) < rng.integers(2, 5, size=40)[:, None]
    members = np.stack([log_softmax(one, mask) for one in logits])
    shares = np.array([0.7, 0.0, 0.3]) if ":" in aggregate else np.full(3, 1 / 3)
    with np.errstate(divide="ignore"):
        expected = np.logaddexp.reduce(members + np.log(shares)[:, None, None], axis=0)
    found = mean_log_probs(logits, mask, aggregate)
    assert (np.isneginf(found) == ~mask).all()
    np.testing.assert_allclose(found[mask], np.minimum(expected, 0.0)[mask], rtol=1e-13, atol=1e-14)


def test_entropies_with_options_that_do_not_exist() -> None:
    mask = np.arange(5) < np.array([5, 3, 1])[:, None]
    logits = log_softmax(50 * np.random.default_rng(0).normal(size=(3, 5)), mask)
    np.testing.assert_allclose(entropies_of(logits), entr(np.exp(logits)).sum(axis=1), atol=1e-15)
    assert entropies_of(logits)[2] == 0.0


def test_one_blas_thread_and_as_many_as_before_afterwards() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before
