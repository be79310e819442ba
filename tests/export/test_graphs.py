"""ONNX and torch.export graphs: equal to the live ensemble whatever the batch and the length; refused when wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sve_cli.certify import in_fresh_process
from sve_cli.certify.verify import verify
from sve_cli.errors import CheckFailed, NotExportable, SveError
from sve_cli.export import graph, torch_export

Make = Callable[..., Any]


def onnx_installed() -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'sve-cli[onnx]')")


def test_the_outputs_of_an_ensemble_are_its_definition() -> None:
    class Backbone:
        @staticmethod
        def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(inputs["x"])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    mean, entropy, mutual, logits = graph.ManyNetworks(Backbone(), members, ["x"])(x)  # type: ignore[arg-type]
    p_MBC = torch.stack([m(x).softmax(-1) for m in members])
    torch.testing.assert_close(mean, p_MBC.mean(0))
    torch.testing.assert_close(entropy, torch.distributions.Categorical(p_MBC.mean(0)).entropy())
    expected = torch.distributions.Categorical(p_MBC).entropy().mean(0)
    torch.testing.assert_close(mutual, torch.distributions.Categorical(p_MBC.mean(0)).entropy() - expected)
    assert logits.shape == (3, 5, 3)


@pytest.mark.slow
def test_a_member_as_onnx(make: Make, tmp_path: Path) -> None:
    onnx_installed()
    ((artifact, certificate),) = make("vit").export(tmp_path / "out", ("onnx",), [2], graph_of="members")
    assert artifact.path.name == "onnx-member-2" and certificate.gaps.worst <= 1e-4 and certificate.gap_to_base > 1e-2
    assert certificate.facts["graph_of"] == "member" and certificate.facts["bytes"] > 0
    described = json.loads((artifact.path / "graph.json").read_text())
    assert described["inputs"]["image"]["shape"] == ["batch", 3, 32, 32] and described["members"] == 1
    verify(artifact.path)
    data = bytearray((artifact.path / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact.path / "model.onnx").write_bytes(data)
    with pytest.raises(CheckFailed, match=r"'model\.onnx' of .* was changed after the export"):
        verify(artifact.path)


@pytest.mark.slow
def test_a_torch_export_archive_holds_no_pickle(make: Make, tmp_path: Path) -> None:
    case = make("vit")
    ((artifact, certificate),) = case.export(tmp_path / "out", ("torch_export",), [1], graph_of="members")
    assert artifact.path.name == "torch_export-member-1" and certificate.gaps.worst <= 1e-4
    assert not torch_export.pickled_parts(artifact.path / "model.pt2")
    assert "holds no pickle" in (artifact.path / "README.md").read_text()
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, artifact.path / "model.pt2")  # as torch does it
    with pytest.raises(CheckFailed, match="pickled part"):
        torch_export.check(artifact.path, text=False)


def test_what_has_no_graph_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SveError, match="--graph-of 'ensembel' names no network. Did you mean 'ensemble'"):
        make("vit").export(tmp_path / "out", ("torch_export",), graph_of="ensembel")
    with pytest.raises(NotExportable, match="does not know which of the letters are options"):
        make("llama").export(tmp_path / "out", ("torch_export",))
    case = make("vit")
    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(NotExportable, match="cannot trace this network: data-dependent"):
        case.export(tmp_path / "out", ("torch_export",), [0], graph_of="members")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SveError, match=r"needs onnx and onnxruntime, which are not installed\. pip install 'sve-cli\[onnx\]'"):
        case.export(tmp_path / "out", ("onnx",))
    assert not list(tmp_path.iterdir())


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("data-dependent expression")


def base_weights(case: Any, patch: pytest.MonkeyPatch) -> None:
    backbone, heads, classes = case.ensemble.backbone, case.ensemble.heads, case.ensemble.classes
    patch.setattr(case.ensemble, "member_model", lambda m: backbone.with_head(backbone.fresh(), heads.head(m, classes)))


def swapped(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = case.ensemble.member_model
    patch.setattr(case.ensemble, "member_model", lambda m: original(1))


def no_head(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = case.ensemble.member_model

    def without(m: int) -> Any:
        model = original(m)
        torch.nn.init.zeros_(model.head.weight)
        return model

    patch.setattr(case.ensemble, "member_model", without)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch_export"])
@pytest.mark.parametrize(
    ("of", "mutate", "message"),
    [
        ("members", base_weights, "untrained checkpoint with the head of member 0"),
        ("members", swapped, "It is member 1"),
        ("members", no_head, "does not compute what was evaluated"),
        ("ensemble", base_weights, "untrained checkpoint|does not compute what was evaluated"),
        ("ensemble", swapped, "Its member 0 is member 1"),
    ],
)
def test_a_wrong_graph_is_refused_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, of: str, mutate: Any, message: str
) -> None:
    onnx_installed()
    case = make("vit")
    mutate(case, monkeypatch)
    with pytest.raises(CheckFailed, match=message) as caught:
        case.export(tmp_path / "out", (target,), [0], graph_of=of)
    assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch_export"])
@pytest.mark.parametrize("kind", ["bert", "bert_mean", "bert_pairs", "vit", "resnet", "llama"])
def test_every_kind_of_network_in_a_fresh_process(make: Make, tmp_path: Path, kind: str, target: str) -> None:
    onnx_installed()
    of = "members" if kind == "llama" else "ensemble"
    ((_, certificate),) = make(kind).export(tmp_path / "out", (target,), [1], reload=in_fresh_process, graph_of=of)
    assert certificate.gaps.worst <= 1e-4


@pytest.mark.slow
def test_without_onnxscript_the_older_exporter_is_used(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_installed()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    ((_, certificate),) = make("vit").export(tmp_path / "out", ("onnx",), [1], graph_of="members")
    assert certificate.facts["traced_by"] == "torch.onnx.export (TorchScript)" and certificate.gaps.worst <= 1e-4
