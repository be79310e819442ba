"""OOD scores in feature space, groups, held-out classes, decisions and `sve predict`, on a tiny run."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.data import decode_image, load_samples
from sve_cli.errors import DataError
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.posthoc.state import Posthoc, split_validation
from sve_cli.predictions import Predictions
from sve_cli.recipe.spec import DataSpec
from sve_cli.report import Report

Sve = Any


@pytest.fixture(scope="session")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Copies the finished run to a folder."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(trained, folder / "run"))

    return copy


def test_feature_scores_and_groups(sve: Sve, evaluated: Callable[[Path], Path], tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    scores = "knn,mahalanobis,variation_ratio,energy_of_mean"
    found = sve.json("ood", run, "--scores", scores, "--near", "held_out_classes", "--far", "digits:ood")
    folder = Path(found["evaluation"])
    assert [(s["name"], s["group"]) for s in found["ood"]] == [("digits:ood", "far"), ("held_out_classes", "near")]
    far = next(s for s in found["ood"] if s["group"] == "far")
    assert found["groups"]["far"]["knn"]["auroc_ood"]["value"] == far["scores"]["knn"]["auroc_ood"]["value"]
    training = TrainingFeatures.load(folder / "training_features.safetensors")
    test = Predictions.load(folder / "predictions" / "test")
    assert test.features_MNF is not None and training.features_MKF.shape == (2, 48, test.features_MNF.shape[2])
    assert training.model_digest == test.model_digest and training.total == 48
    points = far["histograms"]["knn"]
    assert points["roc_id"][0] == points["roc_ood"][0] == 0.0 and points["roc_id"][-1] == points["roc_ood"][-1] == 1.0
    area = float(np.trapezoid(points["roc_ood"], points["roc_id"]))
    assert area == pytest.approx(far["scores"]["knn"]["auroc_ood"]["value"], abs=0.01)
    page = (folder / "report.html").read_text()
    for words in ("Mean of the near sets", "ROC curve", "Nearest neighbours (kNN)", "Decisions"):
        assert words in page
    report = Report.load(folder / "report.json")
    assert report.metric("ood.near.knn.auroc_ood").low is None and report.ood[0].group in ("near", "far")
    text = sve("ood", run, "--scores", scores, "--near", "held_out_classes", "--far", "digits:ood")
    assert "Nearest neighbours (kNN)" in text and "Mean of the far sets" in text and "AUROC" in text and "auroc_ood" not in text


def test_no_features_are_kept_unless_asked_for(trained: Path) -> None:
    folder = next(trained.glob("evaluations/*"))
    assert not (folder / "training_features.safetensors").exists()
    assert Predictions.load(folder / "predictions" / "test").features_MNF is None


def test_held_out_classes() -> None:
    """The eights and nines of the test split, and an error where nothing is left out."""
    spec = DataSpec("digits", classes=[str(i) for i in range(8)])
    samples = load_samples("held_out_classes", spec, "image")
    kept = load_samples("digits:test", DataSpec("digits"), "image")
    assert len(samples) == int((kept.labels_N >= 8).sum()) > 50 and set(samples.labels_N.tolist()) == {-1}
    assert samples.ids_N == [name for name, label in zip(kept.ids_N, kept.labels_N, strict=True) if label >= 8]
    with pytest.raises(DataError, match="leaves none out"):
        load_samples("held_out_classes", DataSpec("digits"), "image")


def test_decisions_are_stored_and_measured(trained: Path) -> None:
    folder = next(trained.glob("evaluations/*"))
    posthoc = Posthoc.from_json((folder / "posthoc.json").read_text())
    report = Report.load(folder / "report.json")
    validation, test = (Predictions.load(folder / "predictions" / name) for name in ("validation", "test"))
    _, calibration = split_validation(validation.n_samples, 0)
    assert posthoc.conformal is not None and posthoc.abstention is not None and posthoc.ood_threshold is not None
    assert posthoc.conformal.n == posthoc.abstention.n == posthoc.ood_threshold.n == len(calibration)
    assert [d.key for d in report.decisions] == ["conformal", "abstention", "ood"]
    coverage = report.metric("decisions.conformal.coverage")
    probs = np.exp(test.logits_MNC.astype(float) - test.logits_MNC.max(axis=2, keepdims=True))
    probs = (probs / probs.sum(axis=2, keepdims=True)).mean(axis=0)
    assert posthoc.conformal.threshold is not None
    inside = 1 - probs[np.arange(test.n_samples), test.labels_N] <= posthoc.conformal.threshold + 1e-12
    assert coverage.value == pytest.approx(inside.mean()) and coverage.low is not None and coverage.low < coverage.value
    assert posthoc.abstention.threshold is None, "24 samples cannot promise 5 %"
    assert any("24" in warning and "few validation samples" in warning for warning in report.warnings)
    assert any("every input is answered" in warning for warning in report.warnings)
    for words in ("Guarantee", "Assumption", "exchangeable"):
        assert words in (folder / "report.md").read_text()


def digit_files(folder: Path, count: int) -> None:
    folder.mkdir()
    items = load_samples("digits:test", DataSpec("digits"), "image").inputs["image"]
    for i in range(count):
        decode_image(items[i]).save(folder / f"{i}.png")


def test_predict_images(sve: Sve, trained: Path, tmp_path: Path) -> None:
    """A folder, one file of it and a table of paths give the same rows; a broken file is named and the others go on."""
    digit_files(tmp_path / "in", 4)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    found = sve.json("predict", trained, "in")
    assert "'broken.png' is left out: Cannot read an image" in sve.err
    rows = {row["id"]: row for row in found["rows"]}
    assert list(rows) == ["0.png", "1.png", "2.png", "3.png", "broken.png"] and rows["broken.png"]["label"] is None
    one = rows["0.png"]
    assert sum(one["probabilities"].values()) == pytest.approx(1) and one["probabilities"][one["label"]] == one["confidence"]
    assert one["entropy"] == pytest.approx(one["aleatoric"] + one["epistemic"]) == pytest.approx(one["ood_score"])
    folder = next(trained.glob("evaluations/*"))
    posthoc = Posthoc.from_json((folder / "posthoc.json").read_text())
    assert posthoc.conformal is not None and posthoc.conformal.threshold is not None
    inside = [c for c, p in one["probabilities"].items() if 1 - p <= posthoc.conformal.threshold]
    assert sorted(one["set"]) == sorted(inside) and one["decision"] in ("answer", "out of distribution")
    alone = sve.json("predict", trained, "in/0.png")["rows"]
    assert len(alone) == 1 and alone[0]["id"] == "0.png"
    assert alone[0]["probabilities"] == pytest.approx(one["probabilities"], rel=1e-4)
    (tmp_path / "t.csv").write_text("id,image\na,in/0.png\nb,in/1.png\n")
    table = sve.json("predict", trained, "t.csv")["rows"]
    assert [row["id"] for row in table] == ["a", "b"] and table[0]["confidence"] == pytest.approx(one["confidence"], rel=1e-4)


def test_predict_writes_files(sve: Sve, trained: Path, tmp_path: Path) -> None:
    digit_files(tmp_path / "in", 3)
    (tmp_path / "in" / "x.png").write_bytes(b"")
    rows = sve.json("predict", trained, "in", "--out", "o.jsonl")["rows"]
    assert [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()] == rows
    text = sve("predict", trained, "in", "--out", "o.csv")
    assert "not readable" in text and "Conformal set" in text
    with open("o.csv", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["label"] for row in read] == [row["label"] or "" for row in rows] and read[3]["error"].startswith("Cannot read")
    assert float(read[0]["p:3"]) == rows[0]["probabilities"]["3"] and json.loads(read[0]["set"]) == rows[0]["set"]
    sve("predict", trained, "in", "--out", "o.parquet")
    assert pq.ParquetFile("o.parquet").read().to_pylist()[0]["set"] == rows[0]["set"]


def test_predict_refuses(sve: Sve, trained: Path, tmp_path: Path) -> None:
    sve.check_refuses("predict", trained, "nowhere.png", saying="There is no file or folder 'nowhere.png'")
    sve.check_refuses("predict", trained, "--text", "hello", saying="--text is for single texts")
    sve.check_refuses("predict", trained, saying="Name what to predict")
    sve.check_refuses("predict", trained, "x", "--out", "o.xlsx", saying="--out must end in .csv, .jsonl, .parquet")
    sve.check_refuses("predict", trained, "a", "b", saying="takes a run and one input")
    (tmp_path / "empty").mkdir()
    sve.check_refuses("predict", trained, "empty", saying="holds no images")
    Image.new("L", (8, 8)).save("ok.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    sve.check_refuses("predict", trained, "bad.png", saying="No input could be read")
    sve.check_refuses("predict", "ok.png", saying="There is no complete run")


def test_an_old_evaluation_answers_everything(sve: Sve, evaluated: Callable[[Path], Path], tmp_path: Path) -> None:
    """A posthoc.json from before there were decisions."""
    from sve_cli.rundir import read_json, seal

    run = evaluated(tmp_path)
    folder = next(run.glob("evaluations/*"))
    old = read_json(folder / "posthoc.json")
    (folder / "posthoc.json").write_text(json.dumps({k: old[k] for k in ("schema", "temperature", "vector")}))
    seal(folder, list(read_json(folder / "COMPLETE")["files"]))
    digit_files(tmp_path / "in", 2)
    rows = sve.json("predict", run, "in")["rows"]
    assert {row["decision"] for row in rows} == {"answer"} and rows[0]["set"] is None and rows[0]["ood_score"] is None
    assert "fitted no decisions" in sve.err
