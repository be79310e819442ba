"""Members as PEFT adapters: equal to the member cut at their rank, exact at full rank, refused when wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sve_cli.certify import in_fresh_process
from sve_cli.errors import CheckFailed, NotExportable, SveError
from sve_cli.export import lora
from sve_cli.export.lora_ranks import choose_ranks, cut, member_directions, member_logits, parse_rank, smallest_rank

peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'sve-cli[lora]')")

Make = Callable[..., Any]
OTHERS = ("bert_mean", "bert_pairs", "resnet")


def adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)])
def test_full_rank_is_the_member(make: Make, tmp_path: Path, kind: str) -> None:
    ((artifact, certificate),) = make(kind).export(tmp_path / "out", ("lora",), [2], rank="full")
    assert certificate.gaps.max_logit_gap <= 1e-4 and certificate.gap_to_base > 1e-2
    assert certificate.versus_member["mean_kl"] < 1e-6 and certificate.versus_member["agreement"] == 1.0
    assert artifact.facts["captured_energy"] == {"least": 1.0, "mean": 1.0}
    config, _ = adapter(artifact.path)
    assert config["lora_alpha"] == config["r"] and config["alpha_pattern"] == config["rank_pattern"]
    assert not config["use_rslora"] and str(tmp_path) not in json.dumps(config)
    text = (artifact.path / "README.md").read_text()
    assert "nothing is lost" in text and "not the ensemble" in text


@pytest.mark.slow
def test_a_cut_member_is_certified_as_such_beside_the_full_one(make: Make, tmp_path: Path) -> None:
    ((artifact, certificate),) = make("bert").export(tmp_path / "out", ("lora",), [1], rank="3")
    assert certificate.gaps.max_logit_gap <= 1e-4
    assert certificate.versus_member["mean_kl"] > 1e-6 and set(certificate.versus_member["delta"]) >= {"nll", "ece_top1_w15"}
    config, tensors = adapter(artifact.path)
    assert config["r"] == config["lora_alpha"] == 3 and not config["rank_pattern"] and config["lora_bias"]
    assert config["target_modules"] == ["dense", "key", "query", "value"] or len(config["target_modules"]) == 12
    assert config["modules_to_save"] == ["classifier"] and config["task_type"] == "SEQ_CLS"
    assert {len(t) for name, t in tensors.items() if "lora_A" in name} == {3}
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "the rest is lost" in (artifact.path / "README.md").read_text()


def test_ranks_by_energy_differ_and_the_serving_rank_is_one(make: Make, tmp_path: Path) -> None:
    case = make("bert_mean")
    ((varied, _),) = case.export(tmp_path / "a", ("lora",), [0], rank="energy:0.7")
    config, _ = adapter(varied.path)
    assert config["rank_pattern"] and config["rank_pattern"] == config["alpha_pattern"]
    assert 0.7 <= varied.facts["captured_energy"]["least"] < 0.95
    ((served, _),) = case.export(tmp_path / "b", ("lora",), [0], rank="energy:0.7", serving_ranks=True)
    config, tensors = adapter(served.path)
    assert config["r"] in (8, 16, 32) and not config["rank_pattern"]
    assert {len(t) for name, t in tensors.items() if "lora_A" in name} == {config["r"]}


def test_a_language_model_with_its_own_head_holds_nothing_but_low_rank_updates(make: Make, tmp_path: Path) -> None:
    case = make("llama", head="checkpoint")
    ((artifact, certificate),) = case.export(tmp_path / "out", ("lora",), [1], rank="8", serving_ranks=True)
    config, tensors = adapter(artifact.path)
    assert config["modules_to_save"] is None and not config["lora_bias"] and not config["rank_pattern"] and config["r"] == 8
    assert config["task_type"] == "CAUSAL_LM" and all("lora_A" in name or "lora_B" in name for name in tensors)
    assert any("lm_head" in name for name in tensors)  # the letters' rows, exactly, as an update of its own
    assert certificate.gaps.max_logit_gap <= 1e-4


@pytest.mark.slow
def test_member_norms_are_saved_whole(make: Make, tmp_path: Path) -> None:
    case = make("bert", params={"train_norms": True})
    ((artifact, certificate),) = case.export(tmp_path / "out", ("lora",), [2], rank="full")
    assert any("LayerNorm" in name for name in adapter(artifact.path)[0]["modules_to_save"])
    assert certificate.gaps.max_logit_gap <= 1e-4 and certificate.versus_member["mean_kl"] < 1e-6


def test_gpt2_stores_its_transposed_layers_the_right_way_round(lab: Any) -> None:
    ensemble = lab.build("gpt2", params={"sigma_init": 0.5}).ensemble
    transposed = {n: d for n, d in member_directions(ensemble, 0).items() if d.view.kind == "conv1d"}
    name, found = next((n, d) for n, d in transposed.items() if d.weight_OI.shape[0] != d.weight_OI.shape[1])
    left_OK, right_KI = found.cut(len(found.size_R))
    base = ensemble.backbone.fresh(share=False)
    config = peft.LoraConfig(r=len(right_KI), lora_alpha=len(right_KI), target_modules=[name], fan_in_fan_out=True)
    adapted = peft.get_peft_model(base, config).base_model.model.get_submodule(name)
    with torch.no_grad():
        adapted.lora_A["default"].weight.copy_(right_KI)
        adapted.lora_B["default"].weight.copy_(left_OK)
        x = torch.randn(5, right_KI.shape[1], generator=torch.Generator().manual_seed(0))
        linear = next(m for m in ensemble.member_linears() if m.view.name == name)
        base_bias = linear.view.bias
        assert base_bias is not None
        torch.testing.assert_close(adapted(x) - base_bias, x @ linear.merged(0)[0].T, atol=1e-4, rtol=1e-4)


# Ranks


def test_rank_rules() -> None:
    assert parse_rank("16").value == 16 and parse_rank("energy:0.95").by == "energy" and parse_rank("full").by == "full"
    assert parse_rank("fidelity:1e-2").value == 0.01
    for wrong in ("0", "-3", "energy:1.5", "energy:0", "energy", "fidelity:x", "some", "full:3", "1.5"):
        with pytest.raises(SveError, match="says no rank"):
            parse_rank(wrong)


def test_fidelity_chooses_the_first_rank_that_is_near_enough(make: Make) -> None:
    case = make("bert")
    directions, inputs = member_directions(case.ensemble, 0), case.source_of().example()
    network = case.ensemble.member_network(0)
    full_BC = member_logits(case.ensemble, 0, network, inputs)
    gaps = {}
    for k in (1, 2, 4, 8, 16, 32):
        cut(network, directions, dict.fromkeys(directions, k))
        gaps[k] = float((member_logits(case.ensemble, 0, network, inputs) - full_BC).abs().max())
    assert gaps[32] < 1e-4 < gaps[16]
    chosen = choose_ranks(case.ensemble, 0, directions, parse_rank(f"fidelity:{gaps[8] * 1.001:.12f}"), False, inputs)
    assert chosen.r == next(k for k in gaps if gaps[k] <= gaps[8] * 1.001)
    with pytest.raises(SveError, match="needs rank 300, and serving engines take at most 256"):
        choose_ranks(case.ensemble, 0, directions, parse_rank("300"), True, None)


def test_energy_is_the_share_of_squared_changes(make: Make) -> None:
    found = next(iter(member_directions(make("bert").ensemble, 0).values()))
    squares = sorted((float(s) ** 2 for s in found.size_R), reverse=True)
    for share in (0.1, 0.5, 0.9, 1.0):
        k = smallest_rank(found, share)
        assert sum(squares[:k]) >= share * sum(squares) * (1 - 1e-9) and (k == 1 or sum(squares[: k - 1]) < share * sum(squares))
        assert found.energy(k) == pytest.approx(sum(squares[:k]) / sum(squares))


@pytest.mark.parametrize(
    ("method", "params", "exact"),
    [("lora_ensemble", {"rank": 3}, 3), ("lora_ensemble", {"rank": 4, "init": "peft"}, 4), ("sve_lora", {"lora_rank": 2}, 32),
     ("sve_band", {}, 32), ("batch_ensemble", {}, 32)],
)  # fmt: skip
def test_other_changes_are_cut_along_their_own_directions(
    make: Make, tmp_path: Path, method: str, params: dict[str, Any], exact: int
) -> None:
    case = make("bert", method=method, params=params)
    for linear in case.ensemble.member_linears():
        left_OR, right_RI, size_R = linear.directions(1)  # type: ignore[misc]
        change_OI = linear.merged(1)[0].double() - linear.weight_OI.double()
        torch.testing.assert_close((left_OR @ right_RI).double(), change_OI, atol=1e-6, rtol=0)
        spectrum = torch.linalg.svdvals(change_OI)[: len(size_R)]
        torch.testing.assert_close(size_R.double(), spectrum, atol=1e-6, rtol=0)
    results = case.export(tmp_path / "out", ("lora",), [1], rank="full")
    assert results[0][1].gaps.max_logit_gap <= 1e-4 and results[0][1].versus_member["mean_kl"] < 1e-6
    assert adapter(results[0][0].path)[0]["r"] == exact
    if method == "lora_ensemble":  # low-rank itself: kept whole unless less is asked for
        assert adapter(case.export(tmp_path / "auto", ("lora",), [1])[0][0].path)[0]["r"] == exact
    directions, inputs = member_directions(case.ensemble, 1), case.source_of().example()
    assert choose_ranks(case.ensemble, 1, directions, parse_rank("fidelity:1e-4"), False, inputs).r <= exact
    assert (choose_ranks(case.ensemble, 1, directions, parse_rank("auto"), False, None).r == exact) == (method == "lora_ensemble")
    cut_short = case.export(tmp_path / "short", ("lora",), [1], rank="2")[0][1]
    assert cut_short.gaps.max_logit_gap <= 1e-4 and (cut_short.versus_member["mean_kl"] > 1e-9 or method == "sve_lora")


# Refusals


def test_what_no_adapter_can_hold_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, method, message in [("bert", "single", "whole networks"), ("bert", "heads_only", "change no layer")]:
        with pytest.raises(NotExportable, match=message):
            make(kind, method=method).export(tmp_path / "out", ("lora",), [0])
    with pytest.raises(SveError, match="says no rank"):
        make("bert").export(tmp_path / "out", ("lora",), [0], rank="many")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SveError, match=r"needs peft, which is not installed\. pip install 'sve-cli\[lora\]'"):
        make("bert").export(tmp_path / "out", ("lora",), [0])
    assert not list(tmp_path.iterdir())


# Sabotage: each must fail the certificate and leave nothing


def rewrite(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """Change the adapter's weights after they are written."""

    def mutate(case: Any, patch: pytest.MonkeyPatch) -> None:
        original = lora._write_config

        def write(source: Any, place: Path, *arguments: Any) -> None:
            original(source, place, *arguments)
            tensors = load_file(place / lora.ADAPTER)
            change(tensors)
            save_file(tensors, place / lora.ADAPTER)

        patch.setattr(lora, "_write_config", write)

    return mutate


def untrained(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def drop_head(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if "classifier" in n or ".head." in n]:
        del tensors[name]


def drop_a_layer(tensors: dict[str, Tensor]) -> None:
    del tensors[next(n for n in tensors if "lora_A" in n)]


def flip_a_bit(tensors: dict[str, Tensor]) -> None:
    raw = next(t for n, t in tensors.items() if "lora_B.weight" in n).view(torch.uint8).reshape(-1)
    raw[3] ^= 0x40  # an exponent bit


def swap(case: Any, patch: pytest.MonkeyPatch) -> None:
    directions, biases, heads = lora.member_directions, lora._biases, lora._whole_tensors
    patch.setattr(lora, "member_directions", lambda e, m: directions(e, 1))
    patch.setattr(lora, "_biases", lambda e, m, layers: biases(e, 1, layers))
    patch.setattr(lora, "_whole_tensors", lambda e, m, whole: heads(e, 1, whole))


def no_scaling(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = peft.LoraConfig
    patch.setattr(peft, "LoraConfig", lambda **keys: original(**{**keys, "lora_alpha": 2 * keys["r"]}))


SABOTAGE = [
    ("bert", rewrite(untrained), "untrained checkpoint with the trained heads|untrained checkpoint with the head of member 0"),
    ("vit", rewrite(untrained), "untrained checkpoint"),
    ("bert", rewrite(drop_head), "lacks the weight .*classifier"),
    ("vit", rewrite(drop_head), "lacks the weight .*head"),
    ("bert", rewrite(drop_a_layer), "lacks, or does not use, the weight .*lora_A"),
    ("bert", rewrite(flip_a_bit), "does not compute|not finite"),
    ("bert", swap, "It is member 1"),
    ("bert", no_scaling, "does not compute what was evaluated"),
]


@pytest.mark.parametrize(("kind", "mutate", "message"), SABOTAGE, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(SABOTAGE)])
def test_a_wrong_adapter_is_refused_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mutate: Any, message: str
) -> None:
    case = make(kind, params={"biases": "frozen"}) if message.startswith("untrained") else make(kind)
    mutate(case, monkeypatch)
    with pytest.raises(CheckFailed, match=message) as caught:
        case.export(tmp_path / "out", ("lora",), [0], rank="4")
    assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "llama"])
def test_in_a_fresh_process_with_transformers_and_peft_alone(make: Make, tmp_path: Path, kind: str) -> None:
    ((_, certificate),) = make(kind).export(tmp_path / "out", ("lora",), [1], reload=in_fresh_process, rank="4")
    assert certificate.gaps.max_logit_gap <= 1e-4 and certificate.versions["peft"] == peft.__version__
