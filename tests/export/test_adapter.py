"""Adapters: small, certified, rebuilt on top of their checkpoint alone; anything that does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sve_cli
from sve_cli.certified import document_digest
from sve_cli.errors import CheckFailed, CheckpointError, NotExportable, SveError
from sve_cli.export import adapter as target
from sve_cli.factors import Factors, FactorStore
from sve_cli.workflows import serving

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("bert", "sve"), ("bert_mean", "heads_only"), ("bert_pairs", "lora_ensemble"), ("vit", "svfit"),
        ("vit", "batch_ensemble"), ("resnet", "sve_lora"), ("llama", "sve"), ("bert", "sve_band"),
    ],
)  # fmt: skip
def test_round_trip(make: Make, tmp_path: Path, kind: str, method: str) -> None:
    case = make(kind, method=method)
    ((artifact, certificate),) = case.export(tmp_path / "out", ("adapter",))
    assert certificate.gaps.max_logit_gap <= 1e-4 and (certificate.gap_to_base > 1e-2 or method == "heads_only")
    assert "every member" in certificate.claim and certificate.member is None
    assert sorted(p.name for p in artifact.path.iterdir()) == [
        "README.md",
        "adapter.json",
        "adapter.safetensors",
        "certificate.json",
    ]
    written = (artifact.path / "adapter.json").read_text() + (artifact.path / "README.md").read_text()
    assert str(case.source.parent) not in written  # where the checkpoint lies here is nobody else's business


@pytest.mark.parametrize("method", ["single", "mc_dropout", "deep_ensemble"])
def test_whole_networks_are_refused(make: Make, tmp_path: Path, method: str) -> None:
    with pytest.raises(NotExportable, match="whole networks.*--to merged"):
        make("bert", method=method).export(tmp_path / "out", ("adapter",))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bert(make: Make, tmp_path: Path) -> tuple[Any, Path]:
    case = make("bert")
    case.export(tmp_path / "out", ("adapter",))
    return case, tmp_path / "out" / "adapter"


def opened(case: Any, folder: Path) -> serving.LoadedEnsemble:
    return sve_cli.load(folder, base=case.source, device="cpu")


def test_what_it_answers(bert: tuple[Any, Path]) -> None:
    case, folder = bert
    ensemble = opened(case, folder)
    texts = list(case.samples.inputs["text"])
    answer = ensemble.predict(texts, execution="merged")
    logits_MNC = ensemble.logits(texts)
    probs_MNC = torch.from_numpy(logits_MNC).double().softmax(-1).numpy()
    mean_NC = probs_MNC.mean(0)
    np.testing.assert_allclose(answer.probabilities, mean_NC, atol=1e-5)
    assert answer.labels == [case.samples.classes[c] for c in mean_NC.argmax(1)]
    expected_N = -(probs_MNC * np.log(probs_MNC)).sum(-1).mean(0)
    total_N = -(mean_NC * np.log(mean_NC)).sum(-1)
    np.testing.assert_allclose(answer.entropy, total_N, atol=1e-5)
    np.testing.assert_allclose(answer.epistemic, total_N - expected_N, atol=1e-5)
    np.testing.assert_allclose(answer.aleatoric, expected_N, atol=1e-5)
    assert answer.decisions == ["answer"] * len(texts)  # there are no rules
    one = ensemble.predict(texts[0], batch_size=1)
    np.testing.assert_allclose(one.probabilities[0], answer.probabilities[0], atol=1e-5)


def test_members_batched_or_merged_are_the_same(bert: tuple[Any, Path]) -> None:
    case, folder = bert
    ensemble = opened(case, folder)
    texts = list(case.samples.inputs["text"])
    both = [ensemble.logits(texts, execution=e, batch_size=7) for e in ("merged", "batched")]
    assert 0 < np.abs(both[0] - both[1]).max() < 1e-4  # not the same code, and the same result
    encoded = [case.task.encode(case.samples.subset(np.arange(n))) for n in (1, 20)]
    assert [ensemble._batching_is_cheaper(e) for e in encoded] == [True, False]  # few rows: no need to build matrices


def test_inputs_of_another_kind_are_refused(bert: tuple[Any, Path]) -> None:
    ensemble = opened(*bert)
    for inputs, message in [([1], "reads texts, and an input is a int"), ([], "no inputs"), ([("a", "b")], "is a tuple")]:
        with pytest.raises(SveError, match=message):
            ensemble.predict(inputs)
    with pytest.raises(SveError, match="Inputs are a list, not a int"):
        ensemble.predict(3)
    with pytest.raises(SveError, match="no execution 'nope'"):
        ensemble.predict(["a text"], execution="nope")  # type: ignore[arg-type]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any], reseal: bool = True) -> None:
    """Change tensors; `reseal`: as an exporter would have written them, so that the digests fit."""
    tensors = load_file(folder / target.TENSORS)
    edit(tensors)
    save_file(tensors, folder / target.TENSORS)
    if reseal:
        document = json.loads((folder / target.CONFIG).read_text())
        document["tensors"] = target.file_digest(folder / target.TENSORS)
        document.pop("digest")
        (folder / target.CONFIG).write_text(json.dumps({**document, "digest": target.document_digest(document)}))


def cut(folder: Path) -> None:
    path = folder / target.TENSORS
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: flip(f / target.TENSORS, -5), "adapter.safetensors' is missing, truncated or was changed"),
    (lambda f: flip(f / target.CONFIG, 400), "adapter.json"),
    (cut, "missing, truncated or was changed"),
    (lambda f: (f / target.TENSORS).unlink(), "missing, truncated or was changed"),
    (lambda f: (f / target.CONFIG).unlink(), "neither a run .* nor an adapter"),
    (lambda f: edit_tensors(f, lambda t: t.pop("state.heads.weight_MCF")), r"missing \['heads.weight_MCF'\]"),
    (lambda f: edit_tensors(f, lambda t: t.pop(next(k for k in t if k.startswith("probe.")))), "no probe for the layer 'bert"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_refused(bert: tuple[Any, Path], damage: Callable[[Path], Any], message: str) -> None:
    case, folder = bert
    damage(folder)
    with pytest.raises(SveError, match=message):
        opened(case, folder)


@pytest.mark.parametrize("allowed", [False, True])
def test_remote_code_runs_only_where_the_caller_agrees(
    bert: tuple[Any, Path], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe in an adapter is a stranger's."""
    case, folder = bert
    read, seen = serving.read_adapter, []

    def asking(place: Path) -> Any:
        document, tensors = read(place)
        return {**document, "recipe": document["recipe"].replace("trust_remote_code: false", "trust_remote_code: true")}, tensors

    def refuse(spec: Any, task: str) -> None:
        seen.append(spec.trust_remote_code)
        raise CheckpointError("Enough.")

    monkeypatch.setattr(serving, "read_adapter", asking)
    monkeypatch.setattr(serving, "load_backbone", refuse)
    with pytest.raises(CheckpointError, match="Enough"):
        sve_cli.load(folder, base=case.source, **({"trust_remote_code": True} if allowed else {}))
    assert seen == [allowed]


def test_another_base_is_refused(bert: tuple[Any, Path], tmp_path: Path) -> None:
    case, folder = bert
    other = Path(shutil.copytree(case.source, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    next(t for n, t in tensors.items() if n.endswith("query.weight"))[0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not the one this adapter was trained on, 'bert'"):
        sve_cli.load(folder, base=other)
    with pytest.raises(CheckpointError, match=r'The adapter needs its checkpoint. Name it, as in base="folder"'):
        sve_cli.load(folder)  # a bare folder name means nothing elsewhere


def test_a_base_with_another_configuration_or_tokenizer_is_refused(bert: tuple[Any, Path], tmp_path: Path) -> None:
    case, folder = bert
    sve_cli.load(folder, base=shutil.copytree(case.source, tmp_path / "copy"))
    other = Path(shutil.copytree(case.source, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match='is not what this adapter was trained with: hidden_act is "relu", was "gelu"'):
        sve_cli.load(folder, base=other)
    document = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    del document["digest"], document["base"]["checkpoint_config"], document["base"]["checkpoint_inputs"]  # of an older version
    old = json.dumps({**document, "digest": document_digest(document)})
    (folder / "adapter.json").write_text(old, encoding="utf-8")
    sve_cli.load(folder, base=case.source)


def another_driver(change: Callable[[Factors], Factors]) -> Callable[..., Factors]:
    original = FactorStore.get

    def get(self: FactorStore, weight_OI: torch.Tensor, name: str) -> Factors:
        factors = original(self, weight_OI, name)
        return change(factors) if name.endswith("layer.1.attention.self.query") else factors

    return get


def rotated(factors: Factors) -> Factors:
    """Two neighbours rotated against each other, as another driver may where they are nearly equal."""
    basis = factors.basis.clone()
    a, b = basis[:, 3].clone(), basis[:, 4].clone()
    basis[:, 3], basis[:, 4] = (a + b) / 2**0.5, (a - b) / 2**0.5
    return replace(factors, basis=basis)


def flipped_signs(factors: Factors) -> Factors:
    signs = torch.ones(factors.basis.shape[1])
    signs[::2] = -1
    return replace(factors, basis=factors.basis * signs)


def test_another_basis_is_refused_and_other_signs_are_not(bert: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    case, folder = bert
    expected = opened(case, folder).logits(case.samples.inputs["text"], execution="merged")
    monkeypatch.setattr(FactorStore, "get", another_driver(flipped_signs))  # W_m is the same, whatever the signs
    np.testing.assert_allclose(opened(case, folder).logits(case.samples.inputs["text"], execution="merged"), expected, atol=1e-5)
    monkeypatch.undo()
    monkeypatch.setenv("SVE_CACHE_DIR", str(case.factors.folder.parent))
    monkeypatch.setattr(FactorStore, "get", another_driver(rotated))
    with pytest.raises(CheckpointError, match="layer 'bert.encoder.layer.1.attention.self.query' of member 0 .* its probe is off"):
        opened(case, folder)


def test_one_side_with_another_sign_is_refused(bert: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    case, folder = bert
    from sve_cli.methods import sve

    original = sve.in_out

    def one_side(weight_OI: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
        a_RI, b_OR = original(weight_OI, factors)
        a_RI = a_RI.clone()
        a_RI[2] *= -1
        return a_RI, b_OR

    monkeypatch.setattr(sve, "in_out", one_side)
    with pytest.raises(CheckpointError, match="its probe is off"):
        opened(case, folder)


def test_another_algorithm_is_refused_unless_the_basis_is_stored(
    make: Make, bert: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, folder = bert
    case.export(tmp_path / "whole", ("adapter",), with_basis=True)
    monkeypatch.setattr(serving, "ALGORITHM", "another/2")
    with pytest.raises(CheckpointError, match="computed by 'gram-eigh-f64/1', and this version computes it by 'another/2'"):
        opened(case, folder)

    def no_decomposition(*_: Any) -> Factors:
        raise AssertionError("the basis is stored")

    monkeypatch.setattr(FactorStore, "get", no_decomposition)
    ensemble = opened(case, tmp_path / "whole" / "adapter")
    assert ensemble.n_members == 3


# Exporters that write something else than what was evaluated.


def sabotage(case: Any, patch: pytest.MonkeyPatch, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    original = case.ensemble.state

    def state() -> dict[str, torch.Tensor]:
        found = original()
        edit(found)
        return dict(found)

    patch.setattr(case.ensemble, "state", state)


def untrained(state: dict[str, torch.Tensor]) -> None:
    for name in state:
        if "delta" in name:
            state[name] = torch.zeros_like(state[name])


def swapped(state: dict[str, torch.Tensor]) -> None:
    for name in state:
        state[name] = state[name][[1, 0, 2]].contiguous()


@pytest.mark.parametrize(
    ("edit", "message"),
    [(untrained, "probe is off"), (swapped, "probe is off"), (lambda s: s.pop("heads.weight_MCF"), "missing .*heads.weight_MCF")],
)
def test_a_wrong_adapter_is_refused_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Any, message: str
) -> None:
    case = make("bert")
    sabotage(case, monkeypatch, edit)
    with pytest.raises(CheckFailed, match=message):
        case.export(tmp_path / "out", ("adapter",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "words"), [(swapped, "Its member 0 is member 1"), (None, "Its member 0 is the untrained checkpoint")]
)
def test_the_certificate_names_what_it_is(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Any, words: str
) -> None:
    """Even where the probes were made of the same wrong state."""
    case = make("bert", params={"biases": "frozen"})
    sabotage(case, monkeypatch, edit or untrained)
    monkeypatch.setattr(serving, "check_probes", lambda *_: None)
    with pytest.raises(CheckFailed, match=words):
        case.export(tmp_path / "out", ("adapter",))
    assert not list(tmp_path.iterdir())
