"""ONNX graphs: equal to the live ensemble in onnxruntime, whatever the batch and the length; refused when wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'sve-cli[onnx]')")

Make = Callable[..., Any]


@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "resnet", "llama"])
def test_the_ensemble_in_one_graph(make: Make, tmp_path: Path, kind: str) -> None:
    ((_, certificate),) = make(kind).export(tmp_path / "out", ("onnx",))
    assert certificate.gaps.max_logit_gap <= 1e-4


@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "resnet", "llama"])
def test_the_ensemble_as_torch_export(make: Make, tmp_path: Path, kind: str) -> None:
    ((_, certificate),) = make(kind).export(tmp_path / "out", ("torch_export",))
    assert certificate.gaps.max_logit_gap <= 1e-4
