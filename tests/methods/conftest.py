"""A layer small enough to compute by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sve_cli.backbone import LinearView


@pytest.fixture
def small_view() -> LinearView:
    """W = [[1, 2, 0], [0, -1, 3]], b = [10, 20]; x = [1, 2, 0] gives [5, -2] + b."""
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]))
        module.bias.copy_(torch.tensor([10.0, 20.0]))
    return LinearView("layer", "linear", module.requires_grad_(False))
