from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.ood.build import needs_features
from sve_cli.posthoc.temperature import Temperature
from sve_cli.posthoc.vector import Vector
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.registry import METRICS, OOD_SCORES
from sve_cli.report import Report
from sve_cli.scoring import data_warnings, headline, score, score_ood

SPEC = EvaluateSpec(bootstrap=200)
PLAIN_SCORES = [name for name in OOD_SCORES if not needs_features([name])]
HARD = [name for name in METRICS if not METRICS.resolve(name).needs_soft_labels]


def make(n: int = 300, members: int = 3, classes: int = 4, shift: float = 3.0, dataset: str = "toy", seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    base = rng.normal(size=(n, classes))
    base[np.arange(n), labels] += shift
    logits = (base + 0.5 * rng.normal(size=(members, n, classes))).astype(np.float32)
    return Predictions(logits, labels, [f"{dataset}{i}" for i in range(n)], [f"c{c}" for c in range(classes)], dataset, "test")


def test_rows_and_intervals() -> None:
    rows = score(make(), SPEC, temperature=Temperature(1.5, 10, 1.0, 0.9), before=make(members=1, shift=0.0), seed=1)
    assert [r.key for r in rows] == ["ensemble", "temperature", "members.0", "members.1", "members.2", "before"]
    assert list(rows[0].metrics) == HARD
    assert list(rows[2].metrics) == ["accuracy", "nll", "brier", "ece_top1_w15"]
    for name, value in rows[0].metrics.items():
        assert value.low is not None and value.high is not None and value.low <= value.high, name
        assert value.n == 300 and value.definition
    accuracy = rows[0].metrics["accuracy"]
    # binomial: 95 % within 1.96 standard errors
    assert accuracy.low is not None and accuracy.high is not None and accuracy.low < accuracy.value < accuracy.high
    assert accuracy.high - accuracy.low == pytest.approx(3.92 * math.sqrt(accuracy.value * (1 - accuracy.value) / 300), rel=0.25)
    assert rows[1].metrics["accuracy"].value > 0.5 and rows[1].metrics["nll"].value != rows[0].metrics["nll"].value
    assert rows[5].metrics["accuracy"].value < 0.4
    assert score(make(), SPEC, temperature=None, seed=1)[0] == rows[0], "same seed, same numbers"
    assert score(make(), SPEC, temperature=None, seed=2)[0] != rows[0]


def test_reliability_bins_add_up_to_the_calibration_error() -> None:
    row = score(make(), SPEC, temperature=None)[0]
    assert sum(b.count for b in row.reliability) == 300
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in row.reliability) / 300
    assert ece == pytest.approx(row.metrics["ece_top1_w15"].value)
    assert max(abs(b.accuracy - b.confidence) for b in row.reliability) == pytest.approx(row.metrics["mce_top1_w15"].value)
    for b in row.reliability:
        assert b.lower < b.confidence <= b.upper and 0 <= b.accuracy_low <= b.accuracy <= b.accuracy_high <= 1


def test_other_bins_other_keys() -> None:
    row = score(make(), EvaluateSpec(bootstrap=0, bins=10), temperature=None)[0]
    assert "ece_top1_w10" in row.metrics and "ece_top1_w15" not in row.metrics
    assert all(v.low is None and v.high is None for v in row.metrics.values())


@pytest.mark.parametrize("n", [1, 2])
def test_tiny_sets_and_one_member(n: int) -> None:
    test = make(n=n, members=1)
    rows, ood = score(test, SPEC, temperature=None), score_ood(test, [make(n=1, members=1, dataset="far", seed=5)], SPEC)
    assert [r.key for r in rows] == ["ensemble"]
    assert rows[0].metrics["mutual_information_mean"].value == 0.0 and rows[0].metrics["disagreement"].value == 0.0
    assert all(math.isfinite(v.value) for v in rows[0].metrics.values())
    assert ood[0].scores["mutual_information"]["auroc_ood"].value == 0.5
    assert ood[0].scores["mutual_information"]["fpr95_ood_positive"].value == 1.0
    assert any("Only" in w for w in data_warnings(test))
    assert len(headline(rows, ood)) == 3


def test_partly_and_fully_unlabelled() -> None:
    test = make()
    half = replace(test, labels_N=np.where(np.arange(300) < 100, test.labels_N, -1))
    metrics = score(half, SPEC, temperature=None)[0].metrics
    known = score(test.subset(np.arange(100)), SPEC, temperature=None)[0].metrics
    assert list(metrics) == HARD
    assert metrics["nll"] == known["nll"] and metrics["nll"].n == 100 and metrics["entropy_mean"].n == 300
    none = replace(test, labels_N=np.full(300, -1))
    row = score(none, SPEC, temperature=None)[0]
    assert "accuracy" not in row.metrics and row.metrics["entropy_mean"].n == 300 and row.reliability == []
    assert "cannot be judged" in headline([row], [])[0]
    assert "No sample has a label" in data_warnings(none)[0]


def test_label_distributions() -> None:
    """Metrics against them are there where the data has them, also for samples without a label, and OOD tables are the same."""
    test = make()
    shares = np.random.default_rng(9).dirichlet(np.ones(4), size=300).astype(np.float32)
    labels = np.where(np.arange(300) < 100, test.labels_N, -1)
    soft = replace(test, labels_N=labels, soft_labels_NC=shares)
    rows = score(soft, SPEC, temperature=Temperature(1.5, 10, 1.0, 0.9), before=make(members=1), seed=1)
    by_key = {row.key: row.metrics for row in rows}
    assert list(by_key["ensemble"]) == list(by_key["temperature"]) == list(METRICS) and list(by_key["before"]) == HARD
    assert list(by_key["members.0"]) == ["accuracy", "nll", "brier", "ece_top1_w15", "nll_soft", "brier_soft"]
    nll, kl = by_key["ensemble"]["nll_soft"], by_key["ensemble"]["kl_soft"]
    assert nll.n == 300 and by_key["ensemble"]["nll"].n == 100 and nll.low is not None and nll.low < nll.value < (nll.high or 0)
    assert nll.value - kl.value == pytest.approx(-(shares * np.log(shares)).sum(axis=1).mean(), rel=1e-5)
    far = make(n=50, shift=0.0, dataset="far", seed=1)
    marked = replace(far, soft_labels_NC=shares[:50])
    assert score_ood(soft, [marked], SPEC) == score_ood(replace(test, labels_N=labels), [far], SPEC)


def test_ood_table() -> None:
    test, far, near = make(), make(n=120, shift=0.0, dataset="far", seed=1), make(n=80, shift=2.0, dataset="near", seed=2)
    spec = EvaluateSpec(bootstrap=200, ood_scores=PLAIN_SCORES)
    sets = score_ood(test, [far, near], spec, seed=0)
    assert [(s.name, s.n_id, s.n_ood) for s in sets] == [("far", 300, 120), ("near", 300, 80)]
    for s in sets:
        assert list(s.scores) == PLAIN_SCORES
        for name, metrics in s.scores.items():
            auroc = metrics["auroc_ood"]
            assert auroc.low is not None and auroc.high is not None and auroc.low < auroc.value < auroc.high
            assert metrics["aupr_ood"].low is None
            histogram = s.histograms[name]
            assert len(histogram["edges"]) == 41 and sum(histogram["id"]) == 300 and sum(histogram["ood"]) == s.n_ood
    assert sets[0].scores["entropy"]["auroc_ood"].value > 0.8 > sets[1].scores["entropy"]["auroc_ood"].value > 0.5


def test_ood_names() -> None:
    test, a = make(), make(dataset="other", seed=1)
    same = replace(make(seed=2), split="oos")
    names = [s.name for s in score_ood(test, [same, a], EvaluateSpec(bootstrap=0))]
    assert names == ["toy:oos", "other"]
    # A second set of a data set must not rename the first: gates and baselines know it by its name.
    assert [s.name for s in score_ood(test, [a, replace(a, split="dev")], EvaluateSpec(bootstrap=0))] == ["other", "other:dev"]
    with pytest.raises(SveError, match="'other' is given twice"):
        score_ood(test, [a, a], SPEC)


def test_varying_options_are_scored_alike_on_both_sides() -> None:
    """Uniform predictions over 3 or 4 options, and over 5 on the OOD side: all are as uncertain as can be."""
    mask = np.arange(4) < np.array([3, 4, 3, 4])[:, None]
    test = Predictions(np.zeros((2, 4, 4), np.float32), np.zeros(4, np.int64), list("abcd"), list("ABCD"), "mc", mask_NC=mask)
    other = Predictions(np.zeros((2, 3, 5), np.float32), np.full(3, -1), list("xyz"), list("ABCDE"), "five")
    result = score_ood(test, [other], EvaluateSpec(bootstrap=0))[0]
    histogram = result.histograms["entropy"]
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((0.5, 1.5)), "every entropy is 1"
    assert sum(histogram["id"]) == 4 and sum(histogram["ood"]) == 3
    assert result.scores["mutual_information"]["auroc_ood"].value == 0.5, "rounding is no signal"
    assert any("number of options varies" in w for w in data_warnings(test))


def test_ood_refusals() -> None:
    with pytest.raises(SveError, match="'far:test' has 2 members and the test set 3"):
        score_ood(make(), [make(members=2, dataset="far")], SPEC)
    with pytest.raises(SveError, match="'far:test' has 5 classes and the test set 4"):
        score_ood(make(), [make(classes=5, dataset="far")], SPEC)
    bad = make(dataset="far")
    bad.logits_MNC[0, 7, 0] = np.nan
    with pytest.raises(SveError, match="sample 'far7' of 'far:test'"):
        score_ood(make(), [bad], SPEC)


def test_headline_says_what_the_numbers_say() -> None:
    """Logits divided by 4 say too little; with the right temperature the sentence must say that it would help."""
    sharp = make(n=2000, members=1)
    timid = replace(sharp, logits_MNC=sharp.logits_MNC / 4)
    rows = score(timid, SPEC, temperature=Temperature(0.25, 10, 1.0, 0.5), before=make(members=1, shift=0.0))
    lines = headline(rows, score_ood(timid, [make(n=100, members=1, shift=0.0, dataset="far")], SPEC))
    assert len(lines) == 4
    assert f"{100 * rows[0].metrics['accuracy'].value:.1f} % of 2,000" in lines[0] and "before training" in lines[0]
    assert "under-confident" in lines[1] or "When it says" in lines[1]
    assert "would help" in lines[2]
    assert "By entropy" in lines[3] and "'far' with AUROC 0." in lines[3]
    rows = score(sharp, SPEC, temperature=Temperature(4.0, 10, 1.0, 0.5))
    assert "would do harm" in headline(rows, [])[2]
    some = replace(timid, logits_MNC=timid.logits_MNC * np.where(np.arange(2000) % 10, 1.0, -9.0)[:, None])
    mixed = score(some, SPEC, temperature=Temperature(0.4, 10, 1.0, 0.5))
    assert mixed[1].metrics["ece_top1_w15"].value < mixed[0].metrics["ece_top1_w15"].value
    assert "would lower the ECE and raise the NLL" in headline(mixed, [])[2]
    rows = score(sharp, SPEC, temperature=Temperature(1.001, 10, 1.0, 0.5))
    assert "would change little" in headline(rows, [])[2]


def test_headline_reads_the_bin_of_ninety_percent() -> None:
    # 100 samples at confidence .9, of which 80 are right
    logits = np.tile(np.log([[[0.9, 0.1]]]), (1, 100, 1))
    labels = (np.arange(100) >= 80).astype(np.int64)
    test = Predictions(logits, labels, [str(i) for i in range(100)], ["x", "y"], "toy", "test")
    line = headline(score(test, SPEC, temperature=None), [])[1]
    assert line.startswith("When it says 90 %, it is right about 80 % of the time (100 samples, interval 71 to 87 %)")


def test_warnings() -> None:
    assert data_warnings(make(n=600)) == []
    test = make(n=600)
    lacking = replace(test, labels_N=np.minimum(test.labels_N, 2))
    assert data_warnings(lacking) == ["1 of 4 classes never occurs in the test set ('c3')."]
    assert "more than once" in data_warnings(replace(test, ids_N=["same"] * 600))[0]
    partly = replace(test, labels_N=np.where(np.arange(600) < 100, -1, test.labels_N))
    assert "100 of 600 samples have no label" in data_warnings(partly)[0]


def test_rows_survive_the_report() -> None:
    test = make()
    rows, ood = score(test, SPEC, temperature=None), score_ood(test, [make(dataset="far", seed=3)], SPEC)
    report = Report("t", headline(rows, ood), rows, "toy", "test", 300, test.classes, ood)
    assert report.metric("members.0.nll").value == rows[1].metrics["nll"].value
    assert report.metric("ood.far.entropy.auroc_ood").direction == "higher"
    assert '"edges"' in report.to_json()


def test_vector_scaling_has_a_row_and_a_sentence() -> None:
    sharp = make(n=2000, members=2)
    timid = replace(sharp, logits_MNC=sharp.logits_MNC / 4)
    vector = Vector([4.0] * 4, [0.0] * 4, 0.25, 10, 1.0, 0.5)
    rows = score(timid, SPEC, temperature=Temperature(0.25, 10, 1.0, 0.5), vector=vector)
    assert [r.key for r in rows] == ["ensemble", "temperature", "vector", "members.0", "members.1"]
    assert rows[2].metrics == rows[1].metrics, "the temperature is a special case"
    line = headline(rows, [])[3]
    assert line.startswith("Vector scaling fitted on validation would help: NLL ")
    assert [r.key for r in score(timid, SPEC, temperature=None, vector=vector)][:2] == ["ensemble", "vector"]


def test_an_unknown_address_is_answered_with_the_nearest_and_the_shortest() -> None:
    rows = score(make(n=60, members=3), SPEC, temperature=None)
    report = Report("t", [], rows, "toy", "test", 60, ["a"])
    assert report.metric("members.0.nll").value == rows[1].metrics["nll"].value
    for asked, meant in (
        ("ece", "ece_top1_w15"),
        ("nlll", "nll"),
        ("members.0.nl", "members.0.nll"),
        ("zzz", None),
    ):
        with pytest.raises(SveError) as caught:
            report.metric(asked)
        suggested = caught.value.hint.partition("It has: ")[0]
        assert (f"'{meant}'" in suggested) == (meant is not None) and suggested.startswith("Did you mean ") == (meant is not None)
        listed = caught.value.hint.partition("It has: ")[2]
        assert listed.startswith("accuracy, ") and " nll," in listed and listed.endswith(" more.") and "members.2" not in listed
