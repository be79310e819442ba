from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import ortho_group, spearmanr
from sklearn.neighbors import NearestNeighbors

from sve_cli.diversity import (
    DistanceRow,
    Diversity,
    PairMeasure,
    RankCorrelation,
    cka_matrix,
    cosine_matrix,
    disagreement_matrix,
    inner_products,
    kl_matrix,
    linear_cka,
    neighbour_distance,
    permuted_correlations,
    q_statistic_matrix,
    rank_correlation,
)
from sve_cli.errors import SveError


def test_disagreement_by_hand() -> None:
    votes = np.array([[0, 1, 2, 2], [0, 1, 1, 2], [1, 1, 0, 2]])
    matrix = disagreement_matrix(np.eye(3)[votes])
    assert matrix == pytest.approx(np.array([[0, 0.25, 0.5], [0.25, 0, 0.5], [0.5, 0.5, 0]]))


def test_options_that_do_not_exist_are_never_named() -> None:
    logits = np.array([[[1.0, 0.0, 9.0]], [[0.0, 1.0, -9.0]]])
    assert disagreement_matrix(logits, np.array([[True, True, False]]))[0, 1] == 1.0
    assert disagreement_matrix(logits, np.array([[True, False, False]]))[0, 1] == 0.0


def test_kl_by_hand_and_row_by_row() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    matrix = kl_matrix(np.log(np.stack([[p, p], [q, p]])))  # the second sample is the same for both
    forward, backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert matrix == pytest.approx(np.array([[0, forward / 2], [backward / 2, 0]]))


def test_kl_leaves_missing_options_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7, 4))
    mask = np.arange(4) < rng.integers(1, 5, 7)[:, None]
    found = kl_matrix(np.where(mask, logits, 1e30), mask)
    for a in range(3):
        for b in range(3):
            rows = []
            for n in range(7):
                pa, pb = (np.exp(logits[m, n, mask[n]]) / np.exp(logits[m, n, mask[n]]).sum() for m in (a, b))
                rows.append(float((pa * np.log(pa / pb)).sum()))
            assert found[a, b] == pytest.approx(np.mean(rows), abs=1e-12)
    monkeypatch.setattr("sve_cli.diversity.BLOCK_NUMBERS", 12)  # one sample a block
    assert kl_matrix(np.where(mask, logits, 1e30), mask) == pytest.approx(found)


def test_q_statistic_by_hand() -> None:
    a = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    b = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)  # n11 3, n10 1, n01 1, n00 3 -> (9 - 1) / (9 + 1)
    assert q_statistic_matrix(np.stack([a, b]))[0, 1] == pytest.approx(0.8)
    c = np.array([1, 0, 1, 0, 1, 0, 1, 0], dtype=bool)
    assert q_statistic_matrix(np.stack([a, c]))[0, 1] == 0.0  # independent
    assert q_statistic_matrix(np.stack([a, ~a]))[0, 1] == -1.0
    never_wrong = np.ones(8, dtype=bool)
    assert math.isnan(q_statistic_matrix(np.stack([never_wrong, never_wrong]))[0, 1])


def test_cosines_add_up_over_layers() -> None:
    first, second = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[2.0], [-1.0]])
    products = inner_products(first) + inner_products(second)
    assert cosine_matrix(products)[0, 1] == pytest.approx((2.0 - 2.0) / 1.0)
    products = inner_products(first)
    assert cosine_matrix(products) == pytest.approx(np.array([[1, 2 / math.sqrt(5)], [2 / math.sqrt(5), 1]]))
    assert math.isnan(cosine_matrix(inner_products(np.array([[0.0, 0.0], [1.0, 0.0]])))[0, 1])


def _hsic_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, with its N x N matrices and without centring."""
    n = len(x)
    k, j = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(j, 0)
    one = np.ones(n)
    total = np.trace(k @ j) + (one @ k @ one) * (one @ j @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ j @ one)
    return float(total) / (n * (n - 3))


def test_cka_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(3.0, 1.0, (12, 5)), rng.normal(-2.0, 1.0, (12, 3))
    y[:, :2] += x[:, :2]
    expected = _hsic_by_definition(x, y) / math.sqrt(_hsic_by_definition(x, x) * _hsic_by_definition(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected < 0.9


def test_cka_sees_through_rotation_shift_and_scale_and_not_through_noise() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 8)) * np.arange(1, 9)
    rotated = 0.03 * x @ ortho_group.rvs(8, random_state=3) + 7.0
    stretched = x * np.array([100.0, *[1.0] * 7])
    matrix = cka_matrix(np.stack([x, rotated, stretched]))
    assert matrix[0, 0] == 1.0 and matrix[0, 1] == pytest.approx(1.0, abs=1e-9)
    assert matrix[0, 2] < 0.9 and matrix[0, 2] == matrix[2, 0]


def test_unrelated_features_have_no_cka_even_with_more_features_than_samples() -> None:
    rng = np.random.default_rng(4)
    values = [linear_cka(rng.normal(size=(50, 80)), rng.normal(size=(50, 80))) for _ in range(20)]
    assert abs(np.mean(values)) < 0.03  # the estimator without the correction gives about 0.6
    assert math.isnan(linear_cka(np.ones((5, 2)), rng.normal(size=(5, 2))))
    with pytest.raises(SveError, match="at least 4 samples"):
        linear_cka(np.ones((3, 2)), np.ones((3, 2)))


def test_neighbour_distance_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    train, test = rng.normal(size=(200, 6)).astype(np.float32), rng.normal(size=(33, 6)).astype(np.float32)
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (train.astype(np.float64), test.astype(np.float64))]
    expected = NearestNeighbors(n_neighbors=10).fit(unit[0]).kneighbors(unit[1])[0].mean(axis=1)
    assert neighbour_distance(4.0 * test, train) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("sve_cli.diversity.BLOCK_NUMBERS", 1000)  # five queries a block
    assert neighbour_distance(test, train) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(SveError, match="there are 9"):
        neighbour_distance(test, train[:9])


def test_rank_correlation_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(0, 12, 80).astype(float)
    y = x + rng.integers(0, 15, 80)
    found = rank_correlation(x, y, np.random.default_rng(0), resamples=400)
    assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    drawn = np.random.default_rng(7).integers(80, size=(2000, 80))
    resampled = [spearmanr(x[rows], y[rows]).statistic for rows in drawn[:400]]
    assert found.low is not None and found.high is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.04)
    assert found.low < found.value < found.high
    assert rank_correlation(x, -y, np.random.default_rng(0), resamples=0) == RankCorrelation(
        pytest.approx(-found.value), None, None, pytest.approx(found.by_chance, abs=0.1)
    )


def test_every_resample_is_scipys_too() -> None:
    """The weighted ranks are those of the resampled arrays themselves."""
    from sve_cli.diversity import _spearman
    from sve_cli.statistics import bootstrap_counts, tie_groups

    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    (weights,) = bootstrap_counts(30, 20, rng)
    expected = [spearmanr(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int))).statistic for w in weights.T]
    assert _spearman([tie_groups(x), tie_groups(y)], weights) == pytest.approx(expected, abs=1e-12)


def test_shuffled_pairs_are_uncorrelated() -> None:
    x = np.random.default_rng(9).normal(size=400)
    shuffled = permuted_correlations(x, x**3, np.random.default_rng(0), times=500)
    assert abs(shuffled.mean()) < 0.01
    assert shuffled.std() == pytest.approx(1 / math.sqrt(399), rel=0.15)  # the exact variance of Spearman's under chance
    found = rank_correlation(x, x**3, np.random.default_rng(0), resamples=0)
    assert found.value == pytest.approx(1.0) and 0.07 < found.by_chance < 0.13


def test_constant_side_has_no_correlation() -> None:
    found = rank_correlation(np.zeros(9), np.arange(9.0), np.random.default_rng(0))
    assert math.isnan(found.value) and found.low is None


def test_mean_is_over_ordered_pairs_and_json_has_no_nan() -> None:
    measure = PairMeasure("KL", "", "higher", [[0.0, 1.0, math.nan], [2.0, 0.0, 3.0], [math.nan, 4.0, 0.0]])
    assert measure.mean == 2.5 and math.isnan(PairMeasure("", "", "lower", [[1.0, math.nan], [math.nan, 1.0]]).mean)
    nothing = RankCorrelation(math.nan, None, None, math.nan)
    found = Diversity("t", "d", "test", 3, 5, ["a"], {"kl": measure}, [DistanceRow("test", 5, 0.1, {"entropy": nothing})])
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["schema"] == "sve-diversity/1"
    assert document["pairs"]["kl"]["mean"] == 2.5 and document["pairs"]["kl"]["matrix"][0] == [0.0, 1.0, None]
    assert document["distance"][0]["correlations"]["entropy"]["value"] is None
