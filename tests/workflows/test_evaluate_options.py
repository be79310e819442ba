"""Vector scaling and label distributions through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.data import load_data
from sve_cli.data.digits import load_digits
from sve_cli.errors import SveError
from sve_cli.posthoc.state import Posthoc, split_validation
from sve_cli.posthoc.vector import fit_vector
from sve_cli.predictions import Predictions
from sve_cli.recipe import load_recipe
from sve_cli.recipe.spec import EvaluateSpec
from sve_cli.rundir import EVALUATING, RunDir, only_process
from sve_cli.workflows import evaluate as workflow
from sve_cli.workflows import session
from sve_cli.workflows.stored import stored_posthoc

TINY = [
    "quickstart", "train.epochs=1", "train.batch_size=16", "train.precision=float32", "evaluate.bootstrap=0", "method.members=2"
]  # fmt: skip
SOFT = ("nll_soft", "kl_soft", "brier_soft")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits"))


def test_vector_scaling_of_a_finished_run(sve: Any, run: Path) -> None:
    made = sve.json("evaluate", run, "--vector")
    rows = {row["key"]: row for row in made["report"]["rows"]}
    assert list(rows) == ["ensemble", "temperature", "vector", "members.0", "members.1"]
    assert any(line.startswith("Vector scaling fitted on validation") for line in made["report"]["headline"])
    folder = Path(made["evaluation"])
    posthoc = Posthoc.from_json((folder / "posthoc.json").read_text())
    validation = Predictions.load(folder / "predictions" / "validation")
    selection, _ = split_validation(validation.n_samples, 0)
    assert posthoc.vector == fit_vector(validation.subset(selection), "probs") and posthoc.vector.n == len(selection)
    assert "vector scaling" in (folder / "report.md").read_text() and "vector scaling" in (folder / "report.html").read_text()
    plain = sve.json("evaluate", run)
    assert [row["key"] for row in plain["report"]["rows"]] == ["ensemble", "temperature", "members.0", "members.1"]
    assert Posthoc.from_json((Path(plain["evaluation"]) / "posthoc.json").read_text()).vector is None
    sve.check_refuses("evaluate", "--predictions", folder / "predictions" / "test", "--vector", saying="--vector belongs to a run")


def test_varying_options_leave_vector_scaling_out_and_say_so() -> None:
    rng = np.random.default_rng(0)
    mask_NC = np.arange(4) < rng.integers(3, 5, size=20)[:, None]
    logits, labels, ids = rng.normal(size=(2, 20, 4)).astype(np.float32), rng.integers(3, size=20), [str(i) for i in range(20)]
    validation, spec = Predictions(logits, labels, ids, list("ABCD"), mask_NC=mask_NC), EvaluateSpec(vector=True)
    posthoc = workflow.fit_posthoc(validation, spec, 0)
    assert posthoc.vector is None and posthoc.temperature is not None
    assert "the options vary" in workflow._left_out(spec, validation)[0] and workflow._left_out(EvaluateSpec(), validation) == []


def test_a_test_set_of_another_name_with_label_distributions(sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits' test images under another name, with shares of labels: scored against them as test set, ignored as OOD set."""
    table = load_digits("test").slice(0, 48)
    labels_N = np.array(table.column("label").to_pylist())
    shares_NC = np.full((48, 10), 0.02)
    shares_NC[np.arange(48), labels_N] += 0.8
    (tmp_path / "sets" / "people").mkdir(parents=True)
    marked = table.append_column("human_probs", pa.array(shares_NC.tolist())).replace_schema_metadata(table.schema.metadata)
    pq.write_table(marked, tmp_path / "sets" / "people" / "test.parquet")
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path / "sets"))
    folder = tmp_path / "run"
    sve("train", *TINY, "data.splits.test=people:test", "--limit", 48, "--out", folder)
    (path,) = (folder / "evaluations").glob("*/report.json")
    report = json.loads(path.read_text())
    assert (report["dataset"], report["split"], report["n"]) == ("people", "test", int((labels_N < len(report["classes"])).sum()))
    rows = {row["key"]: row["metrics"] for row in report["rows"]}
    for key, names in (("ensemble", SOFT), ("temperature", SOFT), ("members.0", ("nll_soft", "brier_soft"))):
        assert set(rows[key]) & set(SOFT) == set(names)
    test = Predictions.load(path.parent / "predictions" / "test")
    assert test.soft_labels_NC is not None
    probs_NC = np.exp(test.logits_MNC) / np.exp(test.logits_MNC).sum(axis=2, keepdims=True)
    kept = shares_NC[labels_N < len(report["classes"])][:, : len(report["classes"])]  # the last digits are no class of the recipe
    expected = -(kept / kept.sum(axis=1, keepdims=True) * np.log(probs_NC.mean(axis=0))).sum(axis=1).mean()
    assert rows["ensemble"]["nll_soft"]["value"] == pytest.approx(expected, rel=1e-5)
    assert "NLL, label distribution" in (path.parent / "report.md").read_text()

    made = sve.json("evaluate", folder, "--ood", "people:test")
    assert any("'people:test' is the data this run was trained or tested on" in line for line in made["report"]["warnings"])
    (stored,) = Path(made["evaluation"]).glob("predictions/people-test-*.safetensors")
    assert Predictions.load(stored.with_suffix("")).soft_labels_NC is None


def test_a_predictions_file_is_scored_without_the_networks_libraries(tmp_path: Path) -> None:
    """timm and transformers take seconds to import, and nothing in a file needs them."""
    path = tmp_path / "p.npz"
    np.savez(path, logits=np.random.default_rng(0).normal(size=(40, 3)), labels=np.arange(40) % 3)
    code = (
        "import sys\nfrom sve_cli.cli import run\n"
        f"assert run(['evaluate', '--predictions', {str(path)!r}, '--bootstrap', '20']) == 0\n"
        "assert not {'timm', 'transformers', 'datasets'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_a_second_evaluation_at_the_same_time_is_refused(sve: Any, run: Path) -> None:
    with only_process(run / EVALUATING, "mine"):
        before = sve.digests(run)
        sve.check_refuses("evaluate", run, "--vector", saying=f"Another process is evaluating '{run}'")
    assert sve.digests(run) == before
    sve("evaluate", run, "--vector")


def test_a_local_set_that_was_changed_is_predicted_anew(sve: Any, run: Path, tmp_path: Path) -> None:
    place = tmp_path / "others"

    def auroc(dark: bool) -> float:
        place.mkdir(exist_ok=True)
        for i in range(24):
            noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(noise * (not dark)).save(place / f"{i}.png")
        found = sve.json("ood", run, "--sets", place)
        return float(next(o for o in found["ood"] if o["name"] != "digits:ood")["scores"]["entropy"]["auroc_ood"]["value"])

    first, again, changed = auroc(False), auroc(False), auroc(True)
    assert first == again != changed


def test_a_run_is_not_opened_with_data_of_other_classes(
    sve: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on = session.run_classes(run=RunDir.open(run))
    monkeypatch.setattr(session, "run_classes", lambda run: [*trained_on[1:], trained_on[0]])
    sve.check_refuses("export", run, "--to", "merged", "--out", tmp_path / "x", saying="are not those that")
    assert "their order or number is another" in sve.err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("trained", "name", "own"),
    [
        ("digits", "digits", True), ("digits", "digits:test", True), ("digits", "digits:ood", False),
        ("digits", "other:test", False),
        ("a", "HERE/a", True), ("a", "HERE/a/test.csv", True), ("a", "HERE/b.csv", True), ("a", "HERE/c.csv", False),
        ("a", "HERE/link", True), ("a", "HERE/a:other", False),
        ("set", "HERE/home/set", True), ("set", "HERE/home/set:test", True), ("set", "HERE/home/set/data/other.csv", False),
    ],
)  # fmt: skip
def test_sets_that_are_the_runs_own(trained: str, name: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"a": ("train.csv", "test.csv", "other.csv"), "home/set/data": ("train.csv", "test-00000-of-00001.csv", "other.csv")}
    for folder, files in {**folders, ".": ("b.csv", "c.csv")}.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            (tmp_path / folder / file).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVE_DATA_DIR", str(tmp_path / "home"))
    recipe = load_recipe("quickstart", [f"data.name={trained}", "data.splits.validation=./b.csv"]).recipe
    assert bool(session.own_data(recipe, [name.replace("HERE", str(tmp_path))])) == own


@pytest.mark.parametrize(
    ("data", "name", "rows"),
    [
        ("str/test.csv", "str/test.csv", ["t0", "t1"]), ("str", "str", ["t0", "t1"]), ("str:train", "str", ["r0", "r1", "r2"]),
        ("a:b", "a:b", ["t0", "t1"]), ("a:b:train", "a:b", ["r0", "r1", "r2"]), ("one", "one", ["o0", "o1"]),
        ("str/train.csv", "str/train.csv", ["r0", "r1", "r2"]),
    ],
)  # fmt: skip
def test_what_a_checkpoint_is_scored_on(
    data: str, name: str, rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder, one with a colon in its name, and a split of either; all classes, also where the rows lack one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("str", "a:b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.csv").write_text("text,label\nr0,no\nr1,yes\nr2,so\n")
        (tmp_path / folder / "test.csv").write_text("text,label\nt0,no\nt1,yes\n")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "dev.csv").write_text("text,label\no0,no\no1,yes\n")
    recipe = workflow.checkpoint_recipe("m", data, "text_classification", [])
    test = load_data(recipe.data, "text", recipe.seed, need=("test",)).test
    assert test is not None and recipe.data.name == name and list(test.inputs["text"]) == rows
    assert test.split == "test" or ":train" in data or name == "one", "a file is no split of anything"
    assert len(test.classes) == (2 if name in ("str/test.csv", "one") else 3)


def test_names_of_sets_that_are_not_local_are_read_as_before() -> None:
    for data, name, split in (("digits", "digits", "test"), ("digits:train", "digits", "train"), ("u/set:dev", "u/set", "dev")):
        recipe = workflow.checkpoint_recipe("m", data, "image_classification", [])
        assert (recipe.data.name, recipe.data.splits.test) == (name, split)


@pytest.mark.parametrize(
    ("first", "second"),
    [("textures", "textures:test"), ("o.csv", "./o.csv"), ("sets/far", "sets/far:test"), ("o.csv", "HERE/o.csv:test")],
)
def test_one_set_in_two_spellings_is_refused_before_any_work(
    sve: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.csv").write_text("image\n")
    (tmp_path / "sets" / "far").mkdir(parents=True)
    second, before = second.replace("HERE", str(tmp_path)), sve.digests(run)
    saying = f"'{first}' and '{second}' are the same"
    sve.check_refuses("ood", run, "--sets", f"{first},{second}", saying=saying)
    assert sve.digests(run) == before
    names = json.dumps([first, second])
    sve.check_refuses("train", *TINY, f"data.ood={names}", "--out", "new", "--dry-run", saying=saying)
    sve.check_refuses("train", *TINY, 'data.ood=["nowhere"]', "--out", "new", "--dry-run", saying="data.ood: Data set 'nowhere'")
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_judged_on_other_data_than_its_own(sve: Any, tmp_path: Path) -> None:
    table = load_digits("train")
    place = tmp_path / "mine"
    place.mkdir()
    for split, rows in (("train", table.slice(0, 80)), ("validation", table.slice(80, 40)), ("test", table.slice(120, 40))):
        pq.write_table(rows, place / f"{split}.parquet")
    run = tmp_path / "run"
    sve("train", *TINY, f"data.name={place}", "data.ood=[]", "--out", run)
    sve("evaluate", run, "--batch-size", 7)
    labels = table.slice(120, 40).column("label").to_pylist()
    turned = table.slice(120, 40).set_column(table.column_names.index("label"), "label", pa.array(labels[::-1]))
    pq.write_table(turned.replace_schema_metadata(table.schema.metadata), place / "test.parquet")
    before = sve.digests(run)
    saying = f"The test split of '{place}' is not the one that '{run}' was made with."
    for command in (["evaluate", run, "--batch-size", 9], ["shift", run], ["diversity", run], ["export", run, "--to", "merged"]):
        sve.check_refuses(*command, saying=saying)
    assert sve.digests(run) == before
    pq.write_table(table.slice(120, 40), place / "test.parquet")
    pq.write_table(table.slice(0, 79), place / "train.parquet")  # what only distances to the training rows need
    sve("evaluate", run, "--batch-size", 9)
    for command in (["diversity", run], ["ood", run, "--sets", "digits:ood", "--scores", "mahalanobis"]):
        sve.check_refuses(*command, saying=saying.replace("test", "train", 1))


def test_an_evaluation_without_its_fits_is_a_sentence(run: Path) -> None:
    (evaluation,) = RunDir.open(run).evaluations()
    (evaluation / "posthoc.json").unlink()
    with pytest.raises(SveError, match=r"Cannot read '.*posthoc.json' .+ Remove '.+' and evaluate the run again"):
        stored_posthoc(evaluation)


def test_a_damaged_cell_of_a_shift_is_predicted_again(sve: Any, run: Path) -> None:
    command = ["shift", run, "--corruptions", "jpeg", "--severities", "5"]
    before = sve.json(*command)
    cell = next(path for path in run.glob("shift/cells/*/jpeg-5*.safetensors"))
    cell.write_bytes(cell.read_bytes()[:100])
    assert sve.json(*command)["shift"]["cells"] == before["shift"]["cells"] and "It is predicted again." in sve.err


@pytest.mark.parametrize("severity", ["+-3", "3.", "three", ""])
def test_what_is_no_severity(sve: Any, run: Path, severity: str) -> None:
    sve.check_refuses("shift", run, "--severities", severity or "1,x", saying="is no severity")


def test_a_split_of_the_run_is_no_foreign_set(sve: Any, run: Path) -> None:
    sve.check_refuses("diversity", run, "--ood", "test", saying="'test' is a split of the run's own data")
