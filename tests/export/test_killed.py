"""A killed export: at whatever moment, no public loader opens what is left, and the next export removes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import sve_cli
from sve_cli.certify import export as certify_export
from sve_cli.certify.staging import OPEN_FILES, STAGING
from sve_cli.errors import SveError
from sve_cli.export import artifact, lora

Make = Callable[..., Any]
REFUSALS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SveError)

pytestmark = pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="Only Linux has /proc.")


def peft_config(folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'sve-cli[lora]')")
    peft.PeftConfig.from_pretrained(str(folder))


def graphs(folder: Path) -> None:
    """Every graph of a folder, by its runtime."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sve-cli[onnx]')")
    opened = [onnxruntime.InferenceSession(str(p)) for p in folder.glob("*.onnx") if p.exists()]
    opened += [torch.export.load(p) for p in folder.glob("*.pt2") if p.exists()]
    if not opened:
        raise ValueError("there is no graph")


LOADERS: list[Callable[[Path], Any]] = [
    AutoModel.from_pretrained,
    AutoModelForSequenceClassification.from_pretrained,
    lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    peft_config,
    graphs,
]


def opens(folder: Path, base: Path) -> list[int]:
    """The loaders that open a folder; `base`: the checkpoint below adapters."""
    found = []
    for i, loader in enumerate([*LOADERS, lambda place: sve_cli.load(place, base=base)]):
        try:
            loader(folder)
        except REFUSALS:
            continue
        found.append(i)
    return found


def killed_at(moment: Callable[[pytest.MonkeyPatch, Callable[[], None]], None], work: Callable[[], Any]) -> None:
    """Run `work` in a process of its own and kill it (SIGKILL) when it reaches the moment."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - it never returns
        try:
            torch.set_num_threads(1)
            with pytest.MonkeyPatch.context() as patch:
                moment(patch, partial(_stop, writing))
                work()
        finally:
            os._exit(1)
    os.close(writing)
    reached = os.read(reading, 1)  # b"": it ended before
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert reached == b"!", "the export never came to this moment"


def _stop(writing: int) -> None:
    os.write(writing, b"!")
    signal.pause()


def while_writing(patch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    """The first checkpoint is written as a whole, its card is not."""
    patch.setattr(artifact, "write_card", lambda *_: stop())


def while_the_second_is_written(patch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    seen: list[object] = []
    original = artifact.write_card

    def write_card(*arguments: Any) -> None:
        original(*arguments)
        seen.append(arguments)
        if len(seen) == 2:
            stop()

    patch.setattr(artifact, "write_card", write_card)


def while_adapters_are_written(patch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    patch.setattr(lora, "write_card", lambda *_: stop())


def while_they_are_judged(patch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    """Everything is written; the fresh process would open it now."""

    def certify_all(artifacts: Sequence[Any], ensemble: Any, *_: Any) -> Any:
        assert all(opens(a.path, Path(ensemble.backbone.spec.name)) for a in artifacts)  # so that the fresh process can, too
        stop()

    patch.setattr(certify_export, "certify_all", certify_all)


def with_certificates(patch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    patch.setattr(certify_export, "write_json", lambda *_: stop())


SLOW = [while_the_second_is_written, while_they_are_judged, with_certificates]  # the second: below as well
MOMENTS = [while_writing, while_adapters_are_written, *(pytest.param(moment, marks=pytest.mark.slow) for moment in SLOW)]


def kill_and_look(case: Any, out: Path, targets: Sequence[str], moment: Any, **options: Any) -> dict[str, list[int]]:
    """Folder -> the loaders that open it after the kill."""
    killed_at(moment, lambda: case.export(out, targets, [0, 1], **options))
    (staging,) = out.iterdir()
    assert staging.name.startswith(STAGING) and sum(p.stat().st_size for p in staging.rglob("*") if p.is_file()) > 1000
    folders = [out, *(p for p in out.rglob("*") if p.is_dir())]
    return {str(folder): found for folder in folders if (found := opens(folder, case.source))}


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_that_is_left_opens(make: Make, tmp_path: Path, moment: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sve-cli[lora]')")
    targets = ("lora",) if moment is while_adapters_are_written else ("merged", "adapter")
    assert kill_and_look(make("bert"), tmp_path / "out", targets, moment) == {}


@pytest.mark.slow
def test_the_next_export_removes_it(make: Make, tmp_path: Path) -> None:
    case, out = make("vit"), tmp_path / "out"
    assert kill_and_look(case, out, ("merged",), while_they_are_judged) == {}
    case.export(out, ("merged",), [1])
    assert [p.name for p in out.iterdir()] == ["member-1"] and opens(out / "member-1", case.source)
    assert not any(p.is_symlink() for p in out.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch_export"])
def test_nor_do_graphs(make: Make, tmp_path: Path, target: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (pip install 'sve-cli[onnx]')")
    found = kill_and_look(make("vit"), tmp_path / "out", (target,), while_they_are_judged, graph_of="members")
    assert found == {}
