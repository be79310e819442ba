"""The comparison behind a certificate, on numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sve_cli.certify import Certificate, Gaps, compare
from sve_cli.certify.certificate import logit_gap
from sve_cli.errors import CheckFailed
from sve_cli.predictions import Predictions


def live(logits_NC: np.ndarray, labels: list[int], mask_NC: np.ndarray | None = None) -> Predictions:
    ids = [str(i) for i in range(len(labels))]
    classes = ["a", "b", "c"][: logits_NC.shape[1]]
    return Predictions(logits_NC[None].astype(np.float32), np.array(labels), ids, classes, mask_NC=mask_NC)


def test_gaps_by_hand() -> None:
    # p = (1/2, 1/2) and (3/4, 1/4); q = (3/4, 1/4) and the same.
    p, q = np.array([[0, 0], [math.log(3), 0]]), np.array([[math.log(3), 0], [math.log(3), 0]], dtype=np.float32)
    gaps = compare(live(p, [1, 0]), q)
    assert gaps.n == 2 and gaps.agreement == 1.0
    assert gaps.max_logit_gap == pytest.approx(math.log(3), rel=1e-6)
    assert gaps.mean_kl == pytest.approx(0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)), rel=1e-6)
    assert gaps.delta["nll"] == pytest.approx(0.5 * (math.log(4) - math.log(2)), rel=1e-6)
    assert gaps.delta["accuracy"] == 0.0


def test_a_changed_prediction_shows() -> None:
    gaps = compare(live(np.array([[1.0, 0.0], [0.0, 1.0]]), [0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32))
    assert gaps.agreement == 0.5 and gaps.delta["accuracy"] == -0.5 and gaps.max_logit_gap == 1.0


def test_options_that_do_not_exist_do_not_count() -> None:
    mask = np.array([[True, True, False]])
    logits = np.array([[1.0, 2.0, 3.0]])
    other = np.array([[1.0, 2.0, -50.0]], dtype=np.float32)
    gaps = compare(live(logits, [1], mask), other)
    assert gaps.max_logit_gap == 0.0 and gaps.mean_kl == 0.0 and gaps.agreement == 1.0
    assert compare(live(logits, [1]), other).max_logit_gap == 53.0


def test_without_labels_there_are_no_score_differences() -> None:
    assert compare(live(np.zeros((2, 2)), [-1, -1]), np.zeros((2, 2), dtype=np.float32)).delta == {}


def test_unusable_answers_are_refused() -> None:
    with pytest.raises(CheckFailed, match=r"\(2, 3\), the live model \(2, 2\)"):
        compare(live(np.zeros((2, 2)), [0, 1]), np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(CheckFailed, match="not finite"):
        compare(live(np.zeros((2, 2)), [0, 1]), np.full((2, 2), np.nan, dtype=np.float32))
    assert logit_gap(np.zeros((1, 2)), np.array([[np.nan, 0]]), None) == math.inf
    assert logit_gap(np.zeros((1, 2)), np.zeros((1, 3)), None) == math.inf


def test_certificate_is_json_and_a_card_section() -> None:
    scores = {"accuracy": 0.5, "nll": 1.25, "ece_top1_w15": 0.125}
    same = {"agreement": 0.75, "mean_kl": 0.02}
    beside = {"averaged": scores, "ensemble": {**scores, "nll": 0.75}, "delta": {**dict.fromkeys(scores, 0.0), "nll": 0.5}, **same}
    certificate = Certificate(
        kind="averaged", member=None, loads_with="load", claim="Claimed.", dataset="set", split="test",
        gaps=Gaps(4, 1e-6, 1e-9, 1.0, {}), gap_to_base=0.5, command="sve export R --to averaged", created="now", classes=["a", "b"],
        versus_ensemble=beside, notes=["Note."], versions={"timm": "1.0"},
    )  # fmt: skip
    document = json.loads(json.dumps(certificate.to_json()))
    assert document["format"] == "sve-certificate/2" and document["gaps"]["max_logit_gap"] == 1e-6 and document["tolerance"] == 1e-4
    text = certificate.to_markdown()
    parts = ["`sve export R --to averaged`", "timm 1.0", "4 samples of set:test", "Claimed.", "- Note."]
    for part in [*parts, "| averaged | 0.5000 | 1.2500 |", "| ensemble | 0.5000 | 0.7500 |", "| +0.5000 |", "on 75.0% of them"]:
        assert part in text
