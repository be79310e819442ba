"""Layers seen as matrices against the layers themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from transformers.pytorch_utils import Conv1D

from sve_cli.backbone.linears import LinearView, require_view, view_of
from sve_cli.errors import CheckpointError

CONVOLUTIONS: dict[str, Any] = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "no bias": {"kernel_size": 3, "bias": False},
}


def check(view: LinearView, x: torch.Tensor) -> None:
    """Native application, and rows times the matrix, both equal the layer."""
    with torch.no_grad():
        expected = view.module(x)
        torch.testing.assert_close(view.apply_native(x, view.to_native(view.weight_OI), view.bias), expected)
        x_MNI, fold = view.rows(x, 2)
        y_MNO = x_MNI @ view.weight_OI.T
        y_MNO = y_MNO if view.bias is None else y_MNO + view.bias
        assert y_MNO.shape[0] == 2
        torch.testing.assert_close(fold(y_MNO), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fold(y_MNO)[2:], view.module(x[2:]), atol=1e-5, rtol=1e-5)  # member-major rows
    assert torch.equal(view.to_native(view.weight_OI), view.native_weight)


@pytest.mark.parametrize("kind", list(CONVOLUTIONS))
def test_conv2d(kind: str) -> None:
    torch.manual_seed(0)
    check(require_view("c", nn.Conv2d(3, 4, **CONVOLUTIONS[kind])), torch.randn(4, 3, 9, 8))


@pytest.mark.parametrize(
    ("side", "stride", "kernel", "dilation"), [(9, 2, 3, 1), (8, 2, 3, 1), (7, 1, 5, 1), (8, 3, 3, 2), (8, 2, 2, 1)]
)
def test_conv_with_tensorflow_padding(side: int, stride: int, kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    check(require_view("c", Conv2dSame(3, 4, kernel, stride=stride, dilation=dilation)), torch.randn(4, 3, side, side + 1))


def test_linear_and_conv1d_are_out_by_in() -> None:
    torch.manual_seed(0)
    linear, conv1d = nn.Linear(5, 7), Conv1D(7, 5)  # Conv1D(out, in) stores (in, out)
    nn.init.normal_(conv1d.bias)
    for layer in (linear, conv1d):
        view = require_view("l", layer)
        assert view.weight_OI.shape == (7, 5)
        check(view, torch.randn(4, 3, 5))
    assert require_view("l", linear.bfloat16()).weight_OI.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), "a grouped convolution"), (nn.Conv2d(4, 8, 3, groups=4), "a depthwise convolution"),
        (nn.Conv1d(4, 8, 3), "a Conv1d"), (nn.LayerNorm(4), "a LayerNorm, which has no weight matrix"),
        (nn.Bilinear(2, 2, 2), "a Bilinear"),
    ],
)  # fmt: skip
def test_other_layers_are_refused_by_name(layer: nn.Module, said: str) -> None:
    assert view_of("block.odd", layer) is None
    with pytest.raises(CheckpointError, match=f"'block.odd' is {said}"):
        require_view("block.odd", layer)
