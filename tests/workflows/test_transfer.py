"""Transfer: what was trained stays to the bit, heads are new and trained, and the new run is a run like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sve_cli.certify import Answer, Questions, worker
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckpointError, SveError
from sve_cli.export import Artifact
from sve_cli.prediction import predict_logits
from sve_cli.recipe import load_recipe
from sve_cli.recipe.spec import DataSpec, MethodSpec, Recipe, TrainSpec
from sve_cli.registry import METHODS, ONE_NETWORK
from sve_cli.rundir import RunDir
from sve_cli.samples import DataSet
from sve_cli.training import Checkpointer, Trainer
from sve_cli.workflows import export as export_workflow
from sve_cli.workflows.session import Session, Silent
from sve_cli.workflows.transfer import (
    HeadsOfFrozen,
    _features,
    _through_heads,
    fit_heads,
    load_all_but_heads,
    transferred_recipe,
)

METHOD_NAMES = list(METHODS)
NEW = ["train.epochs=2", "train.batch_size=16", "train.precision=float32", "evaluate.bootstrap=20", "method.members=2"]
NEW += ["data.classes=['0','1','2']", "train.head_lr=0.02", "seed=5"]
TARGET = ["quickstart", *NEW, "--limit", 48]


def heads_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in state.items() if name.startswith("heads.")}


def body_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in state.items() if not name.startswith("heads.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rebuilt(lab: Any, method: str, built: Any, members: int, seed: int = 7) -> Ensemble:
    """The same method with heads for two other classes."""
    task = lab.task("vit", built.backbone, ["warm", "cold"], head="new")
    members = 1 if method in ONE_NETWORK else members
    made = METHODS.resolve(method)
    ensemble: Ensemble = made.build(built.backbone, task, MethodSpec(name=method, members=members), lab.store, made.Params(), seed)
    return ensemble


def session_for(lab: Any, built: Any, method: str, **train: Any) -> Session:
    """Images of two of the three colours under other names."""
    task = lab.task("vit", built.backbone, ["warm", "cold"], head="new")
    samples = [lab.samples("vit", 30, seed).subset(np.arange(30) % 3 != 2) for seed in (3, 4)]
    train_set, other = (replace(s, classes=["warm", "cold"]) for s in samples)
    spec = TrainSpec(**{"epochs": 3, "batch_size": 5, "precision": "float32", "head_lr": 0.02, **train})
    recipe = Recipe(lab.model("vit"), DataSpec(name="toy"), task.spec, MethodSpec(name=method, members=3), spec)
    return Session(recipe, built.backbone, DataSet(train_set, other, other, []), task, Silent())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_keeps_what_it_trained_and_refits_its_heads(lab: Any, method: str, tmp_path: Path) -> None:
    built = lab.build("vit", method, members=3)
    trained = built.fit()
    ensemble = rebuilt(lab, method, built, 3)
    before = ensemble.state()
    load_all_but_heads(ensemble, trained, built.ensemble.n_members)
    assert same(heads_of(ensemble.state()), heads_of(before))
    fit = fit_heads(session_for(lab, built, method), HeadsOfFrozen(ensemble), RunDir(tmp_path), Silent())
    assert fit.steps == 12
    assert {n for n, p in ensemble.trainable().items() if p.requires_grad} == set(heads_of(before))
    after = ensemble.state()
    assert same(body_of(after), body_of(trained))
    assert all(not torch.equal(after[n], t) and torch.isfinite(after[n]).all() for n, t in heads_of(before).items())
    # The members' features are those of the old run: nothing else that counts was left behind.
    old, new = (predict_logits(e, built.test, 5, keep_features=True)[1] for e in (built.ensemble, ensemble))
    assert old is not None and new is not None and np.array_equal(old, new)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in history]
    assert len(losses) == 3 and losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["sve", "deep_ensemble", "heads_only"])
@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_features_computed_once_train_the_same_heads(lab: Any, method: str, execution: str) -> None:
    built = lab.build("vit", method, members=3)
    trained = built.fit()
    ends = []
    for cached in (True, False):
        ensemble = rebuilt(lab, method, built, 3)
        load_all_but_heads(ensemble, trained, 3)
        view = HeadsOfFrozen(ensemble)
        features = predict_logits(view, built.train, 5, keep_features=True)[1]
        assert features is not None
        assert view.shares_features or np.abs(features[0] - features[1]).max() > 1e-2
        found = features[0] if view.shares_features else features
        spec = TrainSpec(epochs=2, batch_size=8, precision="float32", select="last", member_execution=execution)
        built.train.labels_N = built.train.labels_N % 2
        trainer = Trainer(
            view, built.train, None, lambda m: np.zeros(0), spec, 1.0, 0, built.log, Checkpointer(lambda t, m: None),
            (lambda f=found: f) if cached else None,
        )  # fmt: skip
        trainer.fit()
        ends.append(heads_of(ensemble.state()))
    for name, tensor in ends[0].items():
        assert torch.allclose(tensor, ends[1][name], atol=2e-5), name


@pytest.mark.parametrize("dropout", ["off", "checkpoint"])
def test_a_head_that_all_members_share_is_refitted_as_it_was_trained(lab: Any, dropout: str) -> None:
    built = lab.build("bert", "mc_dropout", members=3, params={"dropout": dropout})
    view, rows = HeadsOfFrozen(built.ensemble), np.arange(6)
    spec, nothing = TrainSpec(precision="float32"), Checkpointer(lambda t, m: None)
    trainer = Trainer(view, built.train, None, lambda m: np.zeros(0), spec, 1.0, 0, built.log, nothing)
    logits = []
    for training in (True, True, False, False):
        view.set_training(training)
        assert built.ensemble.network.training == (training and dropout == "checkpoint")
        logits.append(trainer._logits((0,), [rows], (0, 0, len(logits))))
    assert not torch.equal(logits[0], logits[1])  # units are dropped anew at every step
    assert torch.equal(logits[2], logits[3])


@pytest.mark.parametrize("method", ["sve", "heads_only"])
def test_validation_on_stored_features_is_validation_through_the_network(lab: Any, method: str) -> None:
    built = lab.build("vit", method, members=3)
    session = session_for(lab, built, method)
    view = HeadsOfFrozen(rebuilt(lab, method, built, 3))
    half = session.selection_half()
    stored = _through_heads(view, _features(session, view, half, ""))([2, 0])
    whole = predict_logits(view, half, 5)[0]
    assert stored == pytest.approx(whole[[2, 0]], abs=1e-6) and np.abs(whole[0] - whole[2]).max() > 1e-4


@pytest.mark.parametrize("method", ["sve", "deep_ensemble", "mc_dropout"])
def test_the_first_members_alone(lab: Any, method: str) -> None:
    built = lab.build("vit", method, members=3)
    trained = built.fit()
    ensemble = rebuilt(lab, method, built, 2)
    load_all_but_heads(ensemble, trained, 3)
    old, new = (predict_logits(e, built.test, 5, [0, 1], keep_features=True)[1] for e in (built.ensemble, ensemble))
    assert old is not None and new is not None and np.array_equal(old, new)


def test_the_state_of_another_method_is_refused(lab: Any) -> None:
    built = lab.build("vit", "sve", members=2)
    trained = built.fit()
    for method, members in (("deep_ensemble", 2), ("heads_only", 2)):
        with pytest.raises(CheckpointError, match="does not fit"):
            load_all_but_heads(rebuilt(lab, method, built, members), trained, 2)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_all_but_heads(rebuilt(lab, "sve", built, 2), heads_of(trained), 2)
    with pytest.raises(CheckpointError, match="shape"):  # never more members than there are
        load_all_but_heads(rebuilt(lab, "sve", built, 3), trained, 2)


def test_the_method_is_the_runs_and_the_rest_the_recipes() -> None:
    origin = load_recipe("quickstart", ["method.members=4", "method.params.sigma_init=0.03", "train.epochs=9"]).recipe
    wanted = load_recipe("quickstart", ["method.name=heads_only", "method.members=3", "train.epochs=2", "seed=8"]).recipe
    found = transferred_recipe(origin, wanted)
    assert found.method == replace(origin.method, members=3)
    assert replace(found, method=wanted.method) == wanted
    with pytest.raises(SveError, match="asks for 5 members, but the run has 4"):
        transferred_recipe(origin, more := replace(wanted, method=replace(wanted.method, members=5)))
    assert transferred_recipe(origin, more, most_members=True).method.members == 4
    with pytest.raises(SveError, match="pooling 'native', but the recipe pools by 'cls'"):
        transferred_recipe(origin, replace(wanted, model=replace(wanted.model, pooling="cls")))
    assert transferred_recipe(origin, replace(wanted, model=replace(wanted.model, pooling="native")))
    with pytest.raises(SveError, match="for image_classification, but the recipe for text_classification"):
        transferred_recipe(origin, load_recipe("emotion_minilm", ["method.members=2"]).recipe)


def in_this_process(artifacts: Sequence[Artifact], asked: Questions) -> list[Answer]:
    """The certificate's own reading of an artifact, without the fresh process, which takes seconds to start."""
    found = [worker.answer(artifact.path, asked.request, artifact.reloader) for artifact in artifacts]
    return [Answer({k: t.numpy() for k, t in o.items()}, f["classes"], f["missing"], f["versions"]) for o, f in found]


def test_a_transferred_run_is_a_run(sve: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    before = sve.digests(old)
    made = sve.json("transfer", old, *TARGET, "--out", tmp_path / "new")
    assert sve.digests(old) == before
    new = tmp_path / "new"
    assert made["report"]["classes"] == ["0", "1", "2"] and made["report"]["title"].endswith("transferred from digits")
    assert any("only the heads were trained here" in note for note in made["report"]["provenance"]["notes"])
    accuracy = made["report"]["rows"][0]["metrics"]["accuracy"]["value"]
    assert accuracy > 0.6  # three classes
    states = [load_file(run / "ensemble.safetensors") for run in (old, new)]
    assert same(body_of(states[0]), body_of(states[1])) and body_of(states[1])
    assert states[1]["heads.weight_MCF"].shape[1] == 3
    lock = json.loads((new / "recipe.lock.json").read_text())
    assert lock["transferred_from"]["run"] == str(old) and lock["transferred_from"]["data"] == "digits"
    assert lock["transferred_from"]["trained"] == before["ensemble.safetensors"]

    # The stored run stands by itself: the old one is not needed any more.
    shutil.rmtree(old)
    again = sve.json("evaluate", new, "--bins", 7)["report"]
    assert again["rows"][0]["metrics"]["accuracy"]["value"] == accuracy
    shutil.rmtree(new / "evaluations")
    predicted = sve.json("evaluate", new)["report"]  # predicted anew from the stored state
    assert predicted["rows"][0]["metrics"]["nll"]["value"] == made["report"]["rows"][0]["metrics"]["nll"]["value"]
    reading = partial(export_workflow.export_and_certify, reload=in_this_process)
    monkeypatch.setattr(export_workflow, "export_and_certify", reading)
    certificates = sve.json("export", new, "--to", "merged")
    assert all(m["certificate"]["gaps"]["max_logit_gap"] <= 1e-4 for m in certificates)


@pytest.mark.slow
def test_its_recipe_makes_it_again(sve: Any, trained: Path, tmp_path: Path) -> None:
    sve("transfer", trained, *TARGET, "--out", tmp_path / "new")
    sve("transfer", trained, tmp_path / "new" / "recipe.yaml", "--limit", 48, "--out", tmp_path / "again")
    sve.same_training(tmp_path / "new", tmp_path / "again")
    fewer = [word for word in TARGET if word != "method.members=2"]  # the recipe has four: all of the run's
    sve("transfer", trained, *fewer, "--out", tmp_path / "again", "--overwrite")
    sve.same_training(tmp_path / "new", tmp_path / "again")
    sve("transfer", trained, *TARGET, "seed=6", "--out", tmp_path / "again", "--overwrite")
    with pytest.raises(AssertionError):
        sve.same_training(tmp_path / "new", tmp_path / "again")


def test_augmented_images_go_through_the_network(sve: Any, trained: Path, tmp_path: Path) -> None:
    settings = [*TARGET, "data.augment=crop_flip", "train.epochs=1", "method.members=1"]
    found = sve.json("transfer", trained, *settings, "--out", tmp_path / "new")["report"]
    assert [row["key"] for row in found["rows"]] == ["ensemble", "temperature"]
    assert "Training features" not in sve.err
    states = [load_file(run / "ensemble.safetensors") for run in (trained, tmp_path / "new")]
    assert all(torch.equal(states[0][name][:1], t) for name, t in body_of(states[1]).items())


def test_what_does_not_fit_is_refused_before_any_work(sve: Any, trained: Path, tmp_path: Path) -> None:
    random = ["model.random_init=true"]
    sve.check_refuses("transfer", trained, *TARGET, *random, "--out", tmp_path / "x", saying="is not the checkpoint")
    sve.check_refuses("transfer", trained, *TARGET, "method.members=3", saying="asks for 3 members, but the run has 2")
    sve.check_refuses("transfer", trained, *TARGET, "--out", trained, "--overwrite", saying="is the run that is transferred")
    sve.check_refuses("transfer", tmp_path / "nothing", *TARGET, saying="There is no run")
    sve.check_refuses("transfer", trained, "nothing.yaml", saying="no recipe file")
    own = ["method.name=heads_only", "--out", tmp_path / "x"]
    sve.check_refuses("transfer", trained, *TARGET, *own, saying="method.name changes nothing: a transfer keeps the method")
    assert not (tmp_path / "x").exists() and (trained / "COMPLETE").is_file()


def test_another_image_transform_of_the_same_weights_is_refused(sve: Any, trained: Path, tmp_path: Path) -> None:
    net = tmp_path / "net"
    with as_file(files("sve_cli") / "assets" / "digits_vit") as own:
        shutil.copytree(own, net)
    config = json.loads((net / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (net / "config.json").write_text(json.dumps(config), encoding="utf-8")
    saying = f"The image transform of the checkpoint '{net}' is not what '{trained}' was trained with: mean is"
    sve.check_refuses("transfer", trained, *TARGET, f"model.name={net}", "--out", tmp_path / "x", saying=saying)


def test_an_unfinished_transfer_is_not_resumed(sve: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    sve("transfer", trained, *TARGET, "--out", run)
    (run / "COMPLETE").unlink()
    before = sve.digests(run)
    sve.check_refuses("train", "--resume", run, saying="is an unfinished transfer, which cannot be resumed")
    assert f"sve transfer {trained} {run / 'recipe.yaml'}" in sve.err
    sve.check_refuses("evaluate", run, saying="is not complete")
    assert f"Start it again with: sve transfer {trained}" in sve.err and "train --resume" not in sve.err
    assert sve.digests(run) == before
