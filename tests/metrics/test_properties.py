"""Edges, option masks, and the weighted form against the metric on the repeated sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.metrics.aggregate import aggregate, log_probs
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS

BINS = 5


def masked_predictions(seed: int, n: int = 60, members: int = 3, ties: bool = False) -> Predictions:
    """Items with 3 to 5 options; with `ties`, logits are whole numbers, so that confidences repeat."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 6, size=n)
    mask = np.arange(5) < counts[:, None]
    logits = rng.normal(size=(members, n, 5)) * 1.5
    logits = np.round(logits) if ties else logits
    labels = rng.integers(counts)
    ids, shares = [f"s{i}" for i in range(n)], np.where(mask, rng.gamma(0.5, size=mask.shape), 0.0)
    soft = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return Predictions(logits.astype(np.float32), labels, ids, list("ABCDE"), "mc", "test", mask_NC=mask, soft_labels_NC=soft)


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("kind", ["masked", "plain", "tied"])
def test_weights_equal_repetition(name: str, kind: str) -> None:
    predictions = masked_predictions(1, members=1 if kind == "tied" else 3, ties=kind == "tied")
    if kind == "plain":
        predictions = replace(predictions, mask_NC=None)
    rng, metric = np.random.default_rng(2), METRICS.resolve(name)
    rows = [rng.integers(60, size=60) for _ in range(4)]
    weights_NR = np.stack([np.bincount(r, minlength=60) for r in rows], axis=1).astype(np.float64)
    by_weight = metric.prepare(aggregate(predictions), BINS)(weights_NR)
    by_repetition = [metric.compute(aggregate(predictions.subset(rng.permutation(r))), BINS) for r in rows]
    np.testing.assert_allclose(by_weight, by_repetition, atol=1e-12)


@pytest.mark.parametrize("how", ["probs", "logits"])
def test_values_of_missing_options_play_no_part(how: str) -> None:
    predictions = masked_predictions(3)
    assert predictions.mask_NC is not None
    garbage = np.where(predictions.mask_NC, predictions.logits_MNC, np.nan).astype(np.float32)
    other = replace(predictions, logits_MNC=garbage)
    a, b = aggregate(predictions, how), aggregate(other, how)
    assert (a.probs_NC[~predictions.mask_NC] == 0).all()
    np.testing.assert_allclose(a.probs_NC.sum(axis=1), 1.0, atol=1e-12)
    for name in METRICS:
        assert METRICS.resolve(name).compute(a) == METRICS.resolve(name).compute(b), name


def test_entropy_is_relative_only_when_options_vary() -> None:
    """Uniform over 3, 4 and 5 options: 1 each. With 4 everywhere: ln 4, mask or no mask."""
    logits = np.zeros((2, 3, 5), dtype=np.float32)
    labels, ids = np.zeros(3, dtype=np.int64), ["a", "b", "c"]
    varying = np.arange(5) < np.array([3, 4, 5])[:, None]
    view = aggregate(Predictions(logits, labels, ids, list("ABCDE"), mask_NC=varying))
    np.testing.assert_allclose(view.entropy_N, 1.0)
    np.testing.assert_allclose(view.expected_entropy_N, 1.0)
    same = np.tile(np.arange(5) < 4, (3, 1))
    np.testing.assert_allclose(aggregate(Predictions(logits, labels, ids, list("ABCDE"), mask_NC=same)).entropy_N, np.log(4))


def test_the_unit_of_entropies_can_be_decided_for_all_sets() -> None:
    """Uniform over 3, 4 and 5 options in nats, and over 4 everywhere as a share of ln 4, mask or no mask."""
    logits_MNC = np.zeros((2, 3, 5), dtype=np.float32)
    mask_NC = np.arange(5)[None] < np.array([[3], [4], [5]])
    varying = Predictions(logits_MNC, np.zeros(3, dtype=np.int64), list("abc"), list("ABCDE"), mask_NC=mask_NC)
    np.testing.assert_allclose(aggregate(varying, per_option=False).entropy_N, np.log([3, 4, 5]))
    np.testing.assert_array_equal(aggregate(varying, per_option=True).entropy_N, aggregate(varying).entropy_N)
    fixed = replace(varying, logits_MNC=logits_MNC[:, :, :4], classes=list("ABCD"), mask_NC=None)
    for mask in (None, np.ones((3, 4), dtype=bool)):
        np.testing.assert_allclose(aggregate(replace(fixed, mask_NC=mask), per_option=True).entropy_N, 1.0)
        np.testing.assert_array_equal(
            aggregate(replace(fixed, mask_NC=mask), per_option=False).entropy_N, aggregate(replace(fixed, mask_NC=mask)).entropy_N
        )


def test_one_option_has_no_uncertainty() -> None:
    mask = np.array([[True, False], [True, True]])
    logits, labels = np.zeros((2, 2, 2), dtype=np.float32), np.zeros(2, dtype=np.int64)
    view = aggregate(Predictions(logits, labels, ["a", "b"], ["x", "y"], mask_NC=mask))
    assert view.entropy_N.tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_mutual_information_bounds(members: int, scale: float) -> None:
    rng = np.random.default_rng(members)
    logits = (rng.normal(size=(members, 200, 3)) * scale).astype(np.float32)
    view = aggregate(Predictions(logits, np.zeros(200, dtype=np.int64), [str(i) for i in range(200)], list("abc")))
    assert (view.mutual_information_N >= 0).all()
    assert view.mutual_information_N.max() <= np.log(min(members, 3)) + 1e-12
    np.testing.assert_allclose(view.entropy_N, view.expected_entropy_N + view.mutual_information_N, atol=1e-12)
    if members == 1:
        assert (view.mutual_information_N == 0).all() and (view.entropy_N == view.expected_entropy_N).all()


def test_sure_and_right_is_perfect() -> None:
    """Confidence exactly 1.0 belongs to the last bin, and every error is 0."""
    logits = np.array([[[900.0, 0.0], [0.0, 900.0]]], dtype=np.float32)
    view = aggregate(Predictions(logits, np.array([0, 1]), ["a", "b"], ["x", "y"]))
    assert view.confidence_N.tolist() == [1.0, 1.0]
    for name in ("nll", "brier", "ece_top1_w15", "ece_top1_m15", "ece_class_w15", "mce_top1_w15", "aurc", "entropy_mean",
                 "ece_debiased_w15", "brier_reliability_w15", "eaurc", "risk_at_80", "risk_at_95"):  # fmt: skip
        assert METRICS.resolve(name).compute(view) == 0.0, name


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_parts_of_the_brier_score_add_up(masked: bool, bins: int) -> None:
    """Also against Murphy's own parts and the two that Stephenson et al. add, class by class over the samples that have it."""
    made = masked_predictions(7, n=200)
    view = aggregate(made if masked else replace(made, mask_NC=None))
    names = ("brier_reliability_w15", "brier_resolution_w15", "brier_uncertainty", "brier")
    reliability, resolution, uncertainty, total = (METRICS.resolve(name).compute(view, bins) for name in names)
    assert reliability - resolution + uncertainty == pytest.approx(total, abs=1e-12)
    expected = np.zeros(3)
    for c in range(5):
        has = view.exists_NC[:, c]
        p, y = view.probs_NC[has, c], (view.labels_N[has] == c).astype(float)
        index = np.clip(np.ceil(p * bins) - 1, 0, bins - 1)
        for b in np.unique(index):
            pb, yb = p[index == b], y[index == b]
            within = -np.square(pb - pb.mean()).sum() + 2 * ((yb - yb.mean()) * (pb - pb.mean())).sum()
            expected[0] += len(pb) * (pb.mean() - yb.mean()) ** 2
            expected[1] += len(pb) * (yb.mean() - y.mean()) ** 2 + within
        expected[2] += len(y) * y.mean() * (1 - y.mean())
    np.testing.assert_allclose([reliability, resolution, uncertainty], expected / 200, atol=1e-12)


def test_debiasing_takes_the_bias_away() -> None:
    """Calibrated data: the squared error before the root and the clip is 0 on average, the plain one is not."""
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        confidence = rng.uniform(0.5, 1.0, size=150)
        logits = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)[None]
        labels = (rng.random(150) > confidence).astype(np.int64)
        view = aggregate(Predictions(logits, labels, [str(i) for i in range(150)], ["x", "y"]))
        plain.append(METRICS.resolve("ece_top1_w15").compute(view))
        debiased.append(METRICS.resolve("ece_debiased_w15").compute(view))
    assert np.mean(plain) > 0.06 and np.mean(debiased) < 0.5 * np.mean(plain)
    assert 0.4 < np.mean(np.array(debiased) == 0.0) < 0.8, "half of the estimates lie below the true value, which is 0"


def test_members_log_probs_sum_to_one() -> None:
    log_probs_MNC = log_probs(masked_predictions(4))
    assert log_probs_MNC.shape == (3, 60, 5) and log_probs_MNC.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_probs_MNC).sum(axis=2), 1.0, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_logits_are_refused_by_name(bad: float) -> None:
    logits = np.zeros((2, 3, 2), dtype=np.float32)
    logits[1, 2, 0] = bad
    with pytest.raises(SveError, match=r"sample 'third' of 'toy:dev' are not finite \(member 1"):
        aggregate(Predictions(logits, np.zeros(3, dtype=np.int64), ["first", "second", "third"], ["x", "y"], "toy", "dev"))


def test_impossible_rows_are_refused() -> None:
    logits, ids = np.zeros((1, 2, 2), dtype=np.float32), ["a", "b"]
    with pytest.raises(SveError, match="'b'.*no options"):
        mask = np.array([[True, True], [False, False]])
        aggregate(Predictions(logits, np.array([0, -1]), ids, ["x", "y"], mask_NC=mask))
    with pytest.raises(SveError, match="label of sample 'a'.*does not exist"):
        aggregate(Predictions(logits, np.array([1, 0]), ids, ["x", "y"], mask_NC=np.array([[True, False], [True, True]])))
    with pytest.raises(SveError, match="no samples"):
        aggregate(Predictions(logits[:, :0], np.zeros(0, dtype=np.int64), [], ["x", "y"]))
    with pytest.raises(SveError, match="Unknown aggregate"):
        aggregate(Predictions(logits, np.array([1, 0]), ids, ["x", "y"]), "votes")
