"""What the loop says of its speed: tokens or images that passed, and the FLOPs of their products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sve_cli.recipe.spec import TrainSpec
from sve_cli.training.meter import Meter


def test_a_step_is_counted_and_the_first_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 14.0, 20.0, 22.0])
    monkeypatch.setattr("sve_cli.training.meter.time.monotonic", lambda: next(now))
    meter, w = Meter(), torch.ones(3, 5)
    for rows in (2, 4, 4):
        with meter.step():
            meter.count({"input_ids": torch.ones((rows, 3), dtype=torch.int64)})
            torch.ones(rows, 3) @ w
    assert (meter.unit, meter.seen, meter.seconds) == ("tokens", 24, 6.0)
    assert meter.per_second == 4.0
    assert meter.flops_of_one == 2 * 2 * 3 * 5 / 6
    monkeypatch.setattr("sve_cli.training.meter.gemm_peak", lambda device, dtype: 100.0)
    assert meter.utilisation(torch.device("cpu"), torch.float32) == pytest.approx(4.0 * 10 / 100)


@pytest.mark.parametrize(("network", "unit", "each"), [("bert", "tokens", None), ("vit", "images", 1)])
def test_the_loop_counts_what_passes(lab: Any, network: str, unit: str, each: int | None) -> None:
    built = lab.build(network, n_train=24)
    fit = built.trainer(TrainSpec(epochs=2, batch_size=8, precision="float32")).fit()
    assert fit.meter.unit == unit and fit.meter.seconds > 0 and fit.meter.flops_of_one
    samples = 3 * (48 - 8)  # three members, two epochs, the first step left out
    assert fit.meter.seen == samples if each else fit.meter.seen > samples
