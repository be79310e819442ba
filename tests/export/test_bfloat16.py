"""`--dtype bfloat16`: half the bytes, certified against the rounded member, shown beside the member it was rounded from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sve_cli.errors import CheckFailed, SveError
from sve_cli.export import merged as merged_target
from sve_cli.registry import EXPORTERS

Make = Callable[..., Any]


@pytest.mark.parametrize(
    "kind", ["bert", "vit", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bert_mean", "resnet", "llama"))]
)
def test_rounded_members_are_certified_as_such(make: Make, tmp_path: Path, kind: str) -> None:
    case = make(kind)
    wide = case.export(tmp_path / "wide", ("merged",), [1])[0][0].path
    results = case.export(tmp_path / "out", ("merged", "averaged"), [1], dtype="bfloat16")
    for artifact, certificate in results:
        assert certificate.gaps.max_logit_gap < 1e-3 and certificate.tolerance == 2e-2 and certificate.gap_to_base > 2e-2
        assert certificate.facts["dtype"] == "bfloat16" and "rounded to bfloat16" in certificate.claim
        assert json.loads((artifact.path / "config.json").read_text())["dtype"] == "bfloat16"
        assert "rounded to bfloat16" in (artifact.path / "README.md").read_text()
    beside = results[0][1].versus_member  # it is not the member: rounding moved it
    assert beside is not None and 0 < beside["mean_kl"] < 0.05
    tensors, before = (load_file(folder / "model.safetensors") for folder in (results[0][0].path, wide))
    assert tensors.keys() == before.keys()
    for name, tensor in tensors.items():
        buffer = "running" in name or not before[name].is_floating_point()
        assert torch.equal(tensor, before[name] if buffer else before[name].bfloat16()), name


def test_the_library_opens_it_in_its_own_type(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    ((artifact, _),) = case.export(tmp_path / "out", members=[0], dtype="bfloat16", shard_size=20_000)
    assert len(list(artifact.path.glob("*.safetensors"))) > 1
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path)
    assert model.dtype == torch.bfloat16 and model.config.id2label[2] == "very positive"


@pytest.mark.slow
def test_tied_embeddings_stay_tied(make: Make, tmp_path: Path) -> None:
    case = make("llama", head="auto")
    ((artifact, _),) = case.export(tmp_path / "out", ("averaged",), dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(artifact.path)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", ["base", "swapped", "another head"])
def test_something_else_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    case = make("bert")
    ensemble, backbone = case.ensemble, case.ensemble.backbone
    head = ensemble.heads.head(0, ensemble.classes)
    original = ensemble.member_model
    makers: dict[str, Callable[[int], Any]] = {
        "base": lambda m: backbone.with_head(backbone.fresh(), head),
        "swapped": lambda m: original(1),
        "another head": lambda m: backbone.with_head(ensemble.member_network(m), ensemble.heads.head(2, ensemble.classes)),
    }
    monkeypatch.setattr(ensemble, "member_model", makers[wrong])
    saying = {"base": "untrained checkpoint", "swapped": "It is member 1", "another head": "does not compute"}[wrong]
    with pytest.raises(CheckFailed, match=saying):
        case.export(tmp_path / "out", members=[0], dtype="bfloat16")
    assert not list(tmp_path.iterdir())


def test_targets_that_store_float32_only_say_why(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("bert")
    monkeypatch.setattr(merged_target, "write_checkpoint", None)  # nothing is written before
    for target in EXPORTERS:
        if target not in ("merged", "averaged"):
            with pytest.raises(SveError, match=f"The target {target} is float32 only: .+ Export {target} without --dtype"):
                case.export(tmp_path / "out", ("merged", target), dtype="bfloat16")
    with pytest.raises(SveError, match=r"--dtype 'bfloat' is no type of weights. Did you mean 'bfloat16'"):
        case.export(tmp_path / "out", dtype="bfloat")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_card_of_a_pooled_encoder_runs(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed")
    case = make("bert_mean")
    ((artifact, _),) = case.export(tmp_path / "out", members=[0], dtype="bfloat16")
    code = (artifact.path / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code.replace("FOLDER", str(artifact.path)), {})
    assert capsys.readouterr().out.strip() in case.samples.classes
