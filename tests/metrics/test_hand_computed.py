"""Every metric against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.metrics.aggregate import Aggregated, aggregate
from sve_cli.metrics.binning import bin_index
from sve_cli.predictions import Predictions
from sve_cli.registry import METRICS


def predictions(probs: list[list[list[float]]], labels: list[int], mask: list[list[bool]] | None = None) -> Predictions:
    """Predictions whose members have the given probabilities (M, N, C), in float64 so that hand values hold."""
    array = np.array(probs)
    names = [f"c{c}" for c in range(array.shape[2])]
    with np.errstate(divide="ignore"):
        logits = np.where(array > 0, np.log(array), -1e9)
    mask_NC = None if mask is None else np.array(mask)
    return Predictions(logits, np.array(labels), [f"s{i}" for i in range(len(labels))], names, "toy", "test", mask_NC=mask_NC)


def view(probs: list[list[list[float]]], labels: list[int], mask: list[list[bool]] | None = None) -> Aggregated:
    return aggregate(predictions(probs, labels, mask))


# Four samples, three classes, one member. Predicted 0, 0, 1, 2; labels 0, 1, 1, 2; confidence .7, .5, .8, 1.0.
P = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]]
LABELS = [0, 1, 1, 2]
H = [-sum(p * math.log(p) for p in row if p > 0) for row in P]
# Label distributions; their entropies are ln 2, 0, 1.5 ln 2 and 0.
SOFT = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]
CROSS = -(0.5 * math.log(0.7) + 0.5 * math.log(0.2) + math.log(0.3) + 0.5 * math.log(0.1) + 0.5 * math.log(0.8)) / 4

HAND = {
    "accuracy": 3 / 4,
    # class 0: TP 1 FP 1 FN 0 -> 2/3; class 1: TP 1 FP 0 FN 1 -> 2/3; class 2: 1
    "macro_f1": (2 / 3 + 2 / 3 + 1) / 3,
    "nll": -(math.log(0.7) + math.log(0.3) + math.log(0.8) + 0.0) / 4,
    # .09+.04+.01 = .14; .25+.49+.04 = .78; .01+.04+.01 = .06; 0
    "brier": (0.14 + 0.78 + 0.06 + 0.0) / 4,
    # each sample alone in its bin: gaps .3, .5, .2, 0
    "ece_top1_w15": (0.3 + 0.5 + 0.2 + 0.0) / 4,
    # 15 bins of mass 4/15 each: every sample is spread over several bins, and a bin may span two samples, whose gaps
    # (in order of confidence -.5, .3, .2, 0) then partly cancel: the bin over the cut at mass 1 holds 1 - 3*4/15 = .2 of
    # the first and 4*4/15 - 1 = .0667 of the second: |-.1 + .02| = .08 instead of .12. Sum = 1.0 - .04.
    "ece_top1_m15": (1.0 - 0.04) / 4,
    # class 0: p .7 .5 .1 0, y 1 0 0 0 -> bins differ but for .1 (bin 1) and 0 (bin 0): .3+.5+.1+0 = .9
    # class 1: p .2 .3 .8 0, y 0 1 1 0 -> .2+.7+.2+0 = 1.1
    # class 2: p .1 .2 .1 1, y 0 0 0 1 -> .1+.1 (one bin) +.2+0 = .4
    "ece_class_w15": (0.9 + 1.1 + 0.4) / 4 / 3,
    "ece_debiased_w15": 0.0,  # every sample is alone in its bin
    "mce_top1_w15": 0.5,
    # squared gaps as in brier: alone in their bins, but for the two .1 of class 2, which are equal: (-.2)^2 / 2 = .02
    "brier_reliability_w15": (0.35 + 0.57 + 0.06) / 4,
    "brier_uncertainty": 3 / 16 + 4 / 16 + 3 / 16,
    "brier_resolution_w15": 10 / 16,  # every bin holds one outcome only, so all uncertainty is resolved
    # errors by falling confidence 0 0 0 1: risks 0, 0, 0, 1/4
    "aurc": 1 / 16,
    "eaurc": 0.0,  # the error comes last
    # the error is the fourth sample: .2, .6 and .8 of it are among the 3.2, 3.6 and 3.8 kept
    "risk_at_80": 0.2 / 3.2,
    "risk_at_90": 0.6 / 3.6,
    "risk_at_95": 0.8 / 3.8,
    "nll_soft": CROSS,
    "kl_soft": CROSS - (math.log(2) + 1.5 * math.log(2)) / 4,
    # .04+.09+.01 = .14; .25+.49+.04 = .78; .0225+.09+.0225 = .135; 0
    "brier_soft": (0.14 + 0.78 + 0.135 + 0.0) / 4,
    "disagreement": 0.0,
    "variation_ratio_mean": 0.0,
    "entropy_mean": sum(H) / 4,
    "expected_entropy_mean": sum(H) / 4,
    "mutual_information_mean": 0.0,
}


@pytest.mark.parametrize("name", list(METRICS))
def test_one_member(name: str) -> None:
    soft = replace(predictions([P], LABELS), soft_labels_NC=np.array(SOFT))
    assert METRICS.resolve(name).compute(aggregate(soft)) == pytest.approx(HAND[name], abs=1e-12)


def test_two_members_average_probabilities() -> None:
    # mean (.6, .4): predicted 0 (wrong); NLL -ln .4; the mean of the members' Brier or NLL would be other numbers
    v = view([[[0.9, 0.1]], [[0.3, 0.7]]], [1])
    h = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.6, 0.9, 0.3)]
    expected = {
        "accuracy": 0.0,
        "nll": -math.log(0.4),
        "brier": 2 * 0.36,
        "disagreement": 1.0,
        "entropy_mean": h[0],
        "expected_entropy_mean": (h[1] + h[2]) / 2,
        "mutual_information_mean": h[0] - (h[1] + h[2]) / 2,
    }
    for name, value in expected.items():
        assert METRICS.resolve(name).compute(v) == pytest.approx(value, abs=1e-12), name


def test_two_members_average_logits() -> None:
    # softmax of the mean log-probabilities: proportional to sqrt(.9 * .3), sqrt(.1 * .7)
    p = predictions([[[0.9, 0.1]], [[0.3, 0.7]]], [0])
    a, b = math.sqrt(0.27), math.sqrt(0.07)
    assert METRICS.resolve("nll").compute(aggregate(p, "logits")) == pytest.approx(-math.log(a / (a + b)), abs=1e-12)
    mutual = METRICS.resolve("mutual_information_mean")
    assert mutual.compute(aggregate(p, "logits")) == mutual.compute(aggregate(p, "probs")) > 0


def test_disagreement_counts_pairs() -> None:
    # votes 0, 0, 1: of the 3 pairs 2 differ
    members = [[[0.8, 0.2]], [[0.7, 0.3]], [[0.4, 0.6]]]
    assert METRICS.resolve("disagreement").compute(view(members, [0])) == pytest.approx(2 / 3)
    assert METRICS.resolve("variation_ratio_mean").compute(view(members, [0])) == pytest.approx(1 / 3), "one of three dissents"


def test_bin_edges() -> None:
    # upper edges belong to the bin below; 0 and 1 fall in the first and the last
    assert bin_index(np.array([0.0, 0.2, 0.21, 0.4, 1.0]), 5).tolist() == [0, 0, 1, 1, 4]


def test_samples_of_one_bin_cancel() -> None:
    # both in (.6, .667]: gaps +.38, -.64 -> |mean| = .13, not .51
    v = view([[[0.62, 0.38], [0.64, 0.36]]], [0, 1])
    assert METRICS.resolve("ece_top1_w15").compute(v) == pytest.approx(0.13)
    assert METRICS.resolve("mce_top1_w15").compute(v) == pytest.approx(0.13)


def test_adaptive_ece_two_bins() -> None:
    # halves {.6, .7} (gaps .4, -.7) and {.8, .9} (gaps .2, .1): (.3 + .3) / 4
    v = view([[[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]]], [0, 1, 0, 0])
    assert METRICS.resolve("ece_top1_m15").compute(v, bins=2) == pytest.approx(0.15)


def test_aurc_ties_spread_the_error() -> None:
    # .9 right; then two tied at .6 of which one is wrong: risks 0, (1/2)/2, 1/3; the order of the rows plays no part
    for labels in ([0, 0, 1], [0, 1, 0]):
        v = view([[[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]], labels)
        assert METRICS.resolve("aurc").compute(v) == pytest.approx((0 + 0.25 + 1 / 3) / 3)


def test_debiased_calibration_error() -> None:
    # both in (.6, .667] and wrong: gaps -.62, -.64. Mean squared .63^2 = .3969; the gap's variance .0002 / 2 samples = .0001.
    v = view([[[0.62, 0.38], [0.64, 0.36]]], [1, 1])
    assert METRICS.resolve("ece_debiased_w15").compute(v) == pytest.approx(math.sqrt(0.3968))
    # gaps +.38, -.64: .0169 - .5202 / 2 is negative
    assert METRICS.resolve("ece_debiased_w15").compute(view([[[0.62, 0.38], [0.64, 0.36]]], [0, 1])) == 0.0


def test_murphys_decomposition() -> None:
    # class 0: .9 three times (two right), .6 once (wrong). Shares 2/3 and 0, overall 1/2; class 1 is its mirror image.
    v = view([[[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]], [0, 0, 1, 1])
    reliability, resolution = (3 * (0.9 - 2 / 3) ** 2 + 0.6**2) / 4, (3 * (2 / 3 - 1 / 2) ** 2 + (1 / 2) ** 2) / 4
    assert METRICS.resolve("brier_reliability_w15").compute(v) == pytest.approx(2 * reliability)
    assert METRICS.resolve("brier_resolution_w15").compute(v) == pytest.approx(2 * resolution)
    assert METRICS.resolve("brier_uncertainty").compute(v) == pytest.approx(2 / 4)


def test_excess_area_and_risk_at_coverage() -> None:
    # falling confidence: wrong, right, right, right. Risks 1, 1/2, 1/3, 1/4; at best 0, 0, 0, 1/4.
    v = view([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]], [1, 0, 0, 0])
    assert METRICS.resolve("eaurc").compute(v) == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert METRICS.resolve("risk_at_80").compute(v) == pytest.approx(1 / 3.2)
    # .9 right; four tied at .6 of which one is wrong: 80 % of 5 are the first and 3/4 of the tie
    v = view([[[0.9, 0.1], *[[0.6, 0.4]] * 4]], [0, 1, 0, 0, 0])
    assert METRICS.resolve("risk_at_80").compute(v) == pytest.approx(0.75 / 4)


def test_unknown_labels_are_left_out_where_labels_matter() -> None:
    v = view([[*P, [0.2, 0.4, 0.4]]], [*LABELS, -1])
    for name in METRICS:
        metric = METRICS.resolve(name)
        if metric.needs_labels:
            assert metric.compute(v) == pytest.approx(HAND[name], abs=1e-12), name
    assert METRICS.resolve("entropy_mean").compute(v) > HAND["entropy_mean"]


def test_keys_follow_the_number_of_bins() -> None:
    for name in METRICS:
        metric = METRICS.resolve(name)
        assert metric.key(15) == name
        assert metric.direction in ("higher", "lower", "none") and metric.definition(15).endswith(".")
    assert METRICS.resolve("ece_top1_w15").key(10) == "ece_top1_w10"
    assert "10 equal-width" in METRICS.resolve("ece_top1_w15").definition(10)
