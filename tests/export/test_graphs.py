"""ONNX and torch.export graphs: equal to the live ensemble whatever the batch and the length; refused when wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.certified import verify
from sve_cli.certify import Answer, Questions, Reload, in_fresh_process
from sve_cli.errors import CheckFailed, NotExportable, SveError
from sve_cli.export import Artifact, graph, torch_export
from sve_cli.export.graph_write import check_files, export_graphs
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions

Make = Callable[..., Any]


def onnx_installed() -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'sve-cli[onnx]')")


@pytest.mark.parametrize("how", ["probs", "logits", "weighted:0.6,0,0.4"])
def test_the_outputs_of_an_ensemble_are_its_definition(how: str) -> None:
    class Backbone:
        @staticmethod
        def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(inputs["x"])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    found, entropy, mutual, logits = graph.ManyNetworks(Backbone(), members, ["x"], how)(x)  # type: ignore[arg-type]
    weights_M = torch.tensor([0.6, 0.0, 0.4] if how.startswith("weighted") else [1 / 3] * 3)
    p_MBC = torch.stack([m(x).softmax(-1) for m in members])
    mean_BC = torch.einsum("m,mbc->bc", weights_M, p_MBC)
    wanted_BC = torch.stack([m(x) for m in members]).mean(0).softmax(-1) if how == "logits" else mean_BC
    torch.testing.assert_close(found, wanted_BC)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(wanted_BC).entropy())
    expected_B = weights_M @ torch.distributions.Categorical(p_MBC).entropy()
    torch.testing.assert_close(mutual, torch.distributions.Categorical(mean_BC).entropy() - expected_B)
    assert logits.shape == (3, 5, 3)
    samples = Predictions(logits.detach().numpy(), np.zeros(5, dtype=np.int64), list("vwxyz"), list("abc"), "d", "test")
    view = aggregate(samples, how)  # what an evaluation and the certificate compute
    np.testing.assert_allclose(found.detach(), view.probs_NC, atol=1e-6)
    np.testing.assert_allclose(mutual.detach(), view.mutual_information_N, atol=1e-6)


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


def permuted(case: Any, patch: pytest.MonkeyPatch) -> None:
    """All members, in another order: their mean is the same."""
    original = case.ensemble.member_model
    patch.setattr(case.ensemble, "member_model", lambda m: original([1, 0, 2][m]))


def member_for_mean(case: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case.ensemble, "averaged_model", lambda: case.ensemble.member_model(2))


def base_for_mean(case: Any, patch: pytest.MonkeyPatch) -> None:
    backbone, ensemble = case.ensemble.backbone, case.ensemble
    patch.setattr(ensemble, "averaged_model", lambda: backbone.with_head(backbone.fresh(), ensemble.averaged_head()))


def wrong_output(name: str) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """One output that is off, and the others right."""

    def mutate(case: Any, patch: pytest.MonkeyPatch) -> None:
        for module, outputs in ((graph.OneNetwork, graph.ONE), (graph.ManyNetworks, graph.MANY)):
            patch.setattr(module, "forward", _off(module.forward, outputs.index(name) if name in outputs else None))

    return mutate


def _off(forward: Callable[..., Any], at: int | None) -> Callable[..., tuple[torch.Tensor, ...]]:
    def off(self: torch.nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(out + 0.01 * (i == at) for i, out in enumerate(forward(self, *inputs)))

    return off


def no_head(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = case.ensemble.member_model

    def without(m: int) -> Any:
        model = original(m)
        torch.nn.init.zeros_(model.head.weight)
        return model

    patch.setattr(case.ensemble, "member_model", without)


def untraced(case: Any, patch: pytest.MonkeyPatch) -> Reload:
    """Graphs that are written as an empty file, and answered by the module that would have been traced."""
    kept: dict[str, graph.Graph] = {}

    def trace(found: graph.Graph, path: Path) -> dict[str, Any]:
        path.write_bytes(b"")
        kept[path.parent.name] = found
        return {}

    def reload(artifacts: Sequence[Artifact], asked: Questions) -> list[Answer]:
        inputs = case.task.encode(case.samples).batch(np.arange(len(case.samples)))
        answers = []
        for found in (kept[artifact.path.name] for artifact in artifacts):
            outputs = found.module(*(inputs[name] for name in found.names))
            answers.append(Answer({n: t.numpy() for n, t in zip(found.outputs, outputs, strict=True)}, asked.classes))
        return answers

    write = partial(export_graphs, form=replace(torch_export.FORMAT, trace=trace))
    check = partial(check_files, file=torch_export.FILE)
    patch.setattr(torch_export, "TARGET", replace(torch_export.TARGET, write=write, check=check))
    return reload


@pytest.mark.parametrize("of", ["members", "averaged", "ensemble"])
def test_every_output_is_in_the_certificate(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    case = make("vit")
    reload = untraced(case, monkeypatch)
    ((_, certificate),) = case.export(tmp_path / "out", ("torch_export",), [1], reload=reload, graph_of=of)
    assert certificate.gaps.outputs.keys() == {*(graph.MANY if of == "ensemble" else graph.ONE)} - {"logits"}
    assert certificate.gaps.worst <= 1e-4 and certificate.gap_to_base > 1e-2


@pytest.mark.parametrize(
    ("of", "mutate", "message"),
    [
        ("members", base_weights, "untrained checkpoint with the head of member 0"),
        ("members", permuted, "It is member 1"),
        ("members", no_head, "does not compute what was evaluated"),
        ("members", wrong_output("entropy"), "its entropy differ by up to 1.00e-02"),
        ("members", wrong_output("probabilities"), "its probabilities differ by up to 1.00e-02"),
        ("averaged", base_for_mean, "untrained checkpoint with the mean head"),
        ("averaged", member_for_mean, "It is member 2"),
        ("averaged", wrong_output("entropy"), "its entropy differ"),
        ("ensemble", base_weights, "Its member 0 is the untrained checkpoint with the head of member 0"),
        ("ensemble", swapped, "Its member 0 is member 1"),
        ("ensemble", permuted, "Its member 0 is member 1"),
        ("ensemble", no_head, "does not compute what was evaluated"),
        ("ensemble", wrong_output("mutual_information"), "its mutual information differ by up to 1.00e-02"),
    ],
)
def test_a_wrong_network_is_refused_whatever_the_format(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, mutate: Any, message: str
) -> None:
    case = make("vit")
    reload = untraced(case, monkeypatch)
    mutate(case, monkeypatch)
    with pytest.raises(CheckFailed, match=message) as caught:
        case.export(tmp_path / "out", ("torch_export",), [0], reload=reload, graph_of=of)
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch_export"])
@pytest.mark.parametrize(
    ("of", "mutate", "message"),
    [
        ("members", base_weights, "untrained checkpoint with the head of member 0"),
        ("members", swapped, "It is member 1"),
        ("members", no_head, "does not compute what was evaluated"),
        ("averaged", base_for_mean, "untrained checkpoint with the mean head"),
        ("ensemble", base_weights, "Its member 0 is the untrained checkpoint"),
        ("ensemble", permuted, "Its member 0 is member 1"),
        ("ensemble", no_head, "does not compute what was evaluated"),
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
