from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sve_cli.diagnosis import diagnose
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.render.diagnosis import found_sentences
from sve_cli.render.html import render_html
from sve_cli.render.markdown import render_markdown
from sve_cli.report import Report, Signature
from sve_cli.scoring import score

SPEC = EvaluateSpec(bootstrap=200, ood_scores=["max_probability", "entropy", "mutual_information"])
N, CLASSES = 1500, 4


def healthy(members: int = 3, apart: float = 1.5, scale: float = 1.0) -> Predictions:
    """Members with errors of their own, each roughly calibrated."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=N)
    shared = rng.normal(size=(N, CLASSES))
    shared[np.arange(N), labels] += 2.5
    logits = scale * (shared + apart * rng.normal(size=(members, N, CLASSES)))
    return Predictions(logits.astype(np.float32), labels, [f"t{i}" for i in range(N)], list("abcd"), "toy", "test")


def strange(disagree: bool) -> Predictions:
    """An OOD set: with `disagree` every member is sure of another class, else all share one lukewarm answer."""
    rng = np.random.default_rng(1)
    if disagree:
        logits = 6.0 * np.eye(CLASSES)[rng.integers(CLASSES, size=(3, 400))]
    else:
        logits = np.repeat(np.array([1.2, 1.2, -4.0, -4.0]) + 0.01 * rng.normal(size=(1, 400, CLASSES)), 3, axis=0)
    return Predictions(logits.astype(np.float32), np.full(400, -1), [f"o{i}" for i in range(400)], list("abcd"), "far", "test")


def look(test: Predictions, ood: Predictions | None = None, before: Predictions | None = None) -> dict[str, Signature]:
    sets = [] if ood is None else [("far", ood)]
    return {signature.key: signature for signature in diagnose(test, sets, SPEC, before=before)}


def report(signatures: list[Signature]) -> Report:
    rows = score(healthy(), replace(SPEC, bootstrap=0), temperature=None)
    return Report("t", ["h"], rows, "toy", "test", N, list("abcd"), diagnosis=signatures)


def test_a_healthy_ensemble_shows_none() -> None:
    found = look(healthy(scale=1.6), strange(disagree=True))
    assert list(found) == ["accuracy_collapse", "calibration_worse_than_members", "members_agree", "ood_no_gain.far"]
    assert [s.key for s in found.values() if s.found] == []
    for signature in found.values():
        value = signature.value
        assert value.low is not None and value.high is not None and value.low <= value.value <= value.high, signature.key
        assert signature.setting.split(".")[0] in ("evaluate", "method", "train")
    assert found_sentences(report(list(found.values())))[0].startswith("None of the known failures")


def test_averaging_that_makes_calibrated_members_unsure() -> None:
    test = healthy(members=6, apart=3.0, scale=0.45)
    found = look(test)["calibration_worse_than_members"]
    assert found.found and found.value.value > 0.02 and found.value.low is not None and found.value.low > 0
    assert found.setting == "evaluate.aggregate: logits" and "less sure" in found.advice
    assert "With logits averaged it would be" in found.advice and "a temperature can mend the rest" in found.advice
    again = replace(SPEC, aggregate="logits")  # who follows the advice is told neither the same again nor to go back
    [after] = [s for s in diagnose(test, [], again) if s.key == "calibration_worse_than_members"]
    assert after.value.value < found.value.value and after.setting == "train.epochs: more of them"
    assert "With probs averaged it would be" in after.advice and "which mends nothing" in after.advice
    assert "calibration_worse_than_members" not in look(test.member(0)), "one network has no members to compare with"


def test_accuracy_collapse() -> None:
    test = healthy()
    constant = replace(test, logits_MNC=np.broadcast_to([3.0, 0, 0, 0], test.logits_MNC.shape).astype(np.float32))
    collapsed = look(constant)["accuracy_collapse"]
    assert collapsed.found and collapsed.value.value <= 0 and "always naming" in collapsed.sentence
    below = look(test, before=healthy(apart=0.0))["accuracy_collapse"]
    assert below.found and below.value.value < 0 and "before training" in below.sentence


def test_members_that_agree_everywhere() -> None:
    assert look(healthy(apart=0.001))["members_agree"].found
    same = healthy(apart=0.0)
    found = look(same)["members_agree"]
    assert found.found and found.value.value == 0.0 and found.setting.startswith("method.params.sigma_init")
    perfect = replace(same, labels_N=same.logits_MNC[0].argmax(axis=1))
    assert not look(perfect)["members_agree"].found, "members that are all right need not differ"


def test_no_score_beats_the_largest_probability() -> None:
    found = look(healthy(scale=1.6), strange(disagree=False))["ood_no_gain.far"]
    assert found.found and found.value.low is not None and found.value.low <= 0 and "mahalanobis" in found.setting
    only = EvaluateSpec(bootstrap=20, ood_scores=["max_probability"])
    assert not any(s.key.startswith("ood") for s in diagnose(healthy(), [("far", strange(True))], only))


def test_without_labels_and_without_resamples() -> None:
    test = healthy()
    unlabelled = replace(test, labels_N=np.full(N, -1))
    assert list(look(unlabelled)) == [] and list(look(unlabelled, strange(True))) == ["ood_no_gain.far"]
    half = replace(test, labels_N=np.where(np.arange(N) < 700, test.labels_N, -1))
    assert all(s.value.n == 700 for s in look(half).values())
    assert all(s.value.low is None for s in diagnose(test, [], replace(SPEC, bootstrap=0)))


@pytest.mark.parametrize("is_found", [True, False])
def test_every_view_shows_it(is_found: bool, tmp_path: Path) -> None:
    signatures = [replace(s, found=is_found) for s in look(healthy()).values()]
    shown = report(signatures)
    (tmp_path / "report.json").write_text(shown.to_json(), encoding="utf-8")
    assert Report.load(tmp_path / "report.json").diagnosis == signatures
    assert shown.metric("diagnosis.members_agree") == signatures[2].value
    sentence = "Try method.params.sigma\\_init" if is_found else "None of the known failures"
    assert "## Diagnosis" in render_markdown(shown) and sentence.replace("\\", "") in render_markdown(shown).replace("\\", "")
    html = render_html(shown)
    assert "Diagnosis</h2>" in html and sentence.replace("\\", "") in html
