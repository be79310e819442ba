"""Where Σ moved: by hand on one layer, on a network, and kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.report import Report
from sve_cli.rundir import RunDir
from sve_cli.workflows.spectrum import layer_spectrum, run_spectrum, spectrum_of


def test_one_layer_by_hand() -> None:
    changes = np.array([[0.1, -0.2, 0.0, 0.3], [0.1, 0.2, 0.0, -0.3]])
    layer = layer_spectrum("fc", changes)
    assert (layer.name, layer.values, layer.moved) == ("fc", 4, pytest.approx(0.15))
    assert layer.by_rank == pytest.approx([0.1, 0.2, 0.0, 0.3])
    assert layer.cosine == pytest.approx((0.01 - 0.04 - 0.09) / (0.01 + 0.04 + 0.09))
    long = layer_spectrum("fc", np.arange(25.0)[None])
    assert len(long.by_rank) == 10 and long.by_rank[0] == pytest.approx(1.0) and long.cosine is None
    assert layer_spectrum("fc", np.zeros((2, 4))).cosine is None, "a member that does not move points nowhere"


@pytest.mark.parametrize("parametrisation", ["relative", "absolute"])
def test_changes_are_relative_whatever_is_optimised(lab: Any, parametrisation: str) -> None:
    ensemble = lab.build("vit", "sve", members=2, params={"parametrisation": parametrisation}).ensemble
    linears = list(ensemble.member_linears())
    with torch.no_grad():
        for linear in linears:
            change = torch.stack([0.1 * torch.ones_like(linear.s_R), 0.3 * torch.ones_like(linear.s_R)])
            linear.delta_MR.copy_(change if parametrisation == "relative" else change * linear.s_R)
    found = spectrum_of(ensemble)
    assert found is not None and found.members == 2 and found.start == pytest.approx(0.01 * (2 / np.pi) ** 0.5)
    assert [layer.name for layer in found.layers] == [linear.view.name for linear in linears]
    for layer in found.layers:
        assert layer.moved == pytest.approx(0.2, rel=1e-4) and layer.cosine == pytest.approx(1.0)
        assert layer.by_rank == pytest.approx([0.2] * 10, rel=1e-4)


def test_methods_without_singular_values_have_none(lab: Any) -> None:
    assert spectrum_of(lab.build("vit", "heads_only", members=2).ensemble) is None


def test_it_is_kept_with_the_run(trained: Path) -> None:
    (evaluation,) = (trained / "evaluations").iterdir()
    document = json.loads((evaluation / "report.json").read_text())["spectrum"]
    assert document["version"] == 1 and document["members"] == 2 and len(document["layers"]) > 1

    def refuse() -> Any:
        raise AssertionError("opened the model again")

    assert run_spectrum(RunDir.open(trained), refuse) == Report.load(evaluation / "report.json").spectrum
    assert "Singular values" in (evaluation / "report.html").read_text()
