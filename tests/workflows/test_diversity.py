"""How unlike members are: weights and singular values of every method by hand, and the command on a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.backbone import LinearView
from sve_cli.diversity import cosine_matrix
from sve_cli.predictions import Predictions
from sve_cli.registry import METHODS, ONE_NETWORK
from sve_cli.statistics import weighted_aggregate
from sve_cli.workflows import diversity as workflow
from sve_cli.workflows.diversity import sigma_products, weight_products

WEIGHTS = [name for name in METHODS if name not in (*ONE_NETWORK, "heads_only")]


def session_of(built: Any, method: str) -> Any:
    from sve_cli.recipe.spec import MethodSpec

    return SimpleNamespace(backbone=built.backbone, recipe=SimpleNamespace(method=MethodSpec(name=method, members=3)))


@pytest.mark.parametrize("method", WEIGHTS)
def test_weight_cosine_is_that_of_the_exported_weights(lab: Any, method: str) -> None:
    built = lab.build("vit", method, members=3)
    built.fit()
    ensemble = built.ensemble
    if ensemble.n_members == 1:
        pytest.skip(f"{method} is one network")
    products, count = weight_products(session_of(built, method), ensemble)
    names = [linear.view.name for linear in ensemble.member_linears()]
    names = names or [view.name for view in built.backbone.targets(session_of(built, method).recipe.method)]
    assert count == len(names)
    flat = []
    for m in range(3):
        network = ensemble.member_network(m)
        pairs = [(network.get_submodule(n).weight, built.backbone.network.get_submodule(n).weight) for n in names]
        flat.append(torch.cat([(own.detach() - base.detach()).flatten() for own, base in pairs]).double())
    expected = np.array([[float(a @ b) for b in flat] for a in flat])
    assert products == pytest.approx(expected, rel=1e-3, abs=1e-6 * expected.max())
    cosines = cosine_matrix(products)
    assert np.diag(cosines) == pytest.approx(np.ones(3)) and (np.abs(cosines[np.triu_indices(3, 1)]) < 0.9999).all()


@pytest.mark.parametrize("parametrisation", ["relative", "absolute"])
def test_sigma_cosine_by_hand(lab: Any, parametrisation: str) -> None:
    ensemble = lab.build("vit", "sve", members=2, params={"parametrisation": parametrisation}).ensemble
    linears = list(ensemble.member_linears())
    rows = []
    with torch.no_grad():
        for m in range(2):
            relative = [0.1 * (m + 1) * torch.ones_like(linear.s_R) for linear in linears]
            relative[0] = relative[0] * (1 - 2 * m)  # the first layer in the other direction
            relative[1][0] = -3.0  # below zero: clipped at -1
            for linear, wanted in zip(linears, relative, strict=True):
                linear.delta_MR[m] = wanted if parametrisation == "relative" else wanted * linear.s_R
            rows.append(torch.cat([w.clamp(min=-1.0) for w in relative]).double().numpy())
    products = sigma_products(ensemble)
    assert products is not None
    assert products == pytest.approx(np.array([[a @ b for b in rows] for a in rows]), rel=1e-4)
    assert sigma_products(lab.build("vit", "deep_ensemble", members=2).ensemble) is None


def test_views_know_their_layer_in_another_network(lab: Any) -> None:
    """What `weight_products` reads whole networks with: a convolution and GPT-2's transposed layer, too."""
    for network in ("gpt2", "resnet"):
        built = lab.build(network, "deep_ensemble", members=2)
        built.fit()
        products, _ = weight_products(session_of(built, "deep_ensemble"), built.ensemble)
        own = built.ensemble.member_network(0)
        views = built.backbone.targets(session_of(built, "deep_ensemble").recipe.method)
        total = 0.0
        for view in views:
            moved = LinearView(view.name, view.kind, own.get_submodule(view.name)).weight_OI - view.weight_OI
            total += float(moved.double().norm() ** 2)
        assert products[0, 0] == pytest.approx(total, rel=1e-4) and total > 0


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits"))


def test_the_command_measures_a_run(sve: Any, run: Path, tmp_path: Path) -> None:
    before = sve.digests(run)
    shown = sve("diversity", run, "--samples", 30, "--train-samples", 40)
    for word in ("Disagreement", "Cosine in Σ", "Similarity of features", "digits:ood", "test and OOD"):
        assert word in shown
    (folder,) = (run / "diversity").iterdir()
    assert {p.name for p in folder.iterdir()} == {"diversity.json", "diversity.md", "diversity.html"}
    assert {name: digest for name, digest in sve.digests(run).items() if name in before} == before

    found = sve.json("diversity", run, "--samples", 30, "--train-samples", 40, "--out", tmp_path / "out")["diversity"]
    assert found["members"] == 2 and found["n"] == 48  # pairs are taken from the whole test split
    (evaluation,) = (run / "evaluations").iterdir()
    test = Predictions.load(evaluation / "predictions" / "test")
    votes = test.logits_MNC.argmax(axis=2)
    assert found["pairs"]["disagreement"]["mean"] == pytest.approx((votes[0] != votes[1]).mean())
    assert set(found["pairs"]) >= {"disagreement", "kl", "q_statistic", "sigma_cosine", "weight_cosine", "cka"}
    assert [(row["name"], row["n"]) for row in found["distance"]] == [("test", 30), ("digits:ood", 30), ("test and OOD", 60)]
    assert all(-1 <= row["correlations"]["entropy"]["value"] <= 1 for row in found["distance"])
    assert found["distance"][1]["mean_distance"] > found["distance"][0]["mean_distance"]  # eights and nines are new
    assert "<svg" in (tmp_path / "out" / "diversity.html").read_text() and found["provenance"]["aggregate"] == "probs"
    sve("evaluate", run)  # the run is still what it was


def test_weights_of_the_members_make_the_uncertainty(sve: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is correlated with the distance is the uncertainty of the ensemble as the run evaluates it."""
    sve("evaluate", run, "--aggregate", "weighted")
    used: list[str] = []
    real = workflow.ensemble_uncertainty

    def watched(logits_MNC: np.ndarray, mask_NC: np.ndarray | None, how: str) -> Any:
        used.append(how)
        return real(logits_MNC, mask_NC, how)

    monkeypatch.setattr(workflow, "ensemble_uncertainty", watched)
    found = sve.json("diversity", run, "--samples", 20, "--train-samples", 20)["diversity"]
    (posthoc,) = [text for file in run.glob("evaluations/*/posthoc.json") if (text := json.loads(file.read_text()))["weights"]]
    assert used == [weighted_aggregate(posthoc["weights"]["values"])] and found["provenance"]["aggregate"] == used[0]


def test_what_cannot_be_measured_is_refused(sve: Any, run: Path, tmp_path: Path) -> None:
    tiny = ["quickstart", "train.epochs=0", "data.ood=[]", "evaluate.bootstrap=0", "--limit", 32]
    sve("train", *tiny, "method.name=single", "method.members=1", "--out", tmp_path / "one")
    sve.check_refuses("diversity", tmp_path / "one", saying="one member, which differs from nobody")
    sve.check_refuses("diversity", run, "--ood", "digits:nothing", saying="digits:nothing")
    (run / "COMPLETE").unlink()
    sve.check_refuses("diversity", run, saying="is not complete")


def test_members_that_share_everything_but_heads(sve: Any, tmp_path: Path) -> None:
    tiny = ["quickstart", "train.epochs=1", "data.ood=[]", "evaluate.bootstrap=0", "--limit", 32, "method.members=2"]
    sve("train", *tiny, "method.name=heads_only", "--out", tmp_path / "heads")
    found = sve.json("diversity", tmp_path / "heads", "--samples", 25)["diversity"]
    assert set(found["pairs"]) == {"disagreement", "kl", "q_statistic"}
    assert any("share the checkpoint's weights" in note for note in found["notes"])
    assert [row["name"] for row in found["distance"]] == ["test"] and found["distance"][0]["correlations"]["entropy"]["low"] is None
