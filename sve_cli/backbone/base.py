"""The backbone: an opened checkpoint, seen as features plus a linear head.

Shapes: B batch, C classes, F features.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sve_cli.backbone.linears import LinearView
from sve_cli.backbone.targets import SELECTORS, select_targets
from sve_cli.backbone.weights import Writing
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import MethodSpec, ModelSpec

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Head:
    """A linear classifier: weight_CF, bias_C (None: without), and the class names if known."""

    weight_CF: Tensor
    bias_C: Tensor | None
    classes: list[str] | None


class Backbone(ABC):
    """An opened checkpoint.

    `network` is the library's own module. Methods take a structural copy of it with `fresh`, so that frozen weights
    are shared by every member and the checkpoint itself is never changed.
    """

    library: str
    modality: str
    loads_with: str  # the public call that opens an exported folder
    head_has_bias = True  # False: the library's own classifier has none to put one in

    def __init__(self, network: nn.Module, spec: ModelSpec, feature_dim: int, head: Head | None) -> None:
        self.network = network.eval()
        self.spec = spec
        self.feature_dim = feature_dim
        self.head = head
        self.notes: list[str] = []  # what a reader of a run's results must know of the checkpoint
        for parameter in network.parameters():
            parameter.requires_grad_(False)

    @abstractmethod
    def features(self, network: nn.Module, inputs: Inputs) -> Tensor:
        """Penultimate features (B, F) of `network`, a copy of this backbone's network."""

    @abstractmethod
    def with_head(self, network: nn.Module, head: Head) -> nn.Module:
        """`network`, completed to the library's own classifier with this head (in place; returned for use)."""

    @abstractmethod
    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Logits (B, C) of a model from `with_head` or `reload`, by the library's own forward."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, classes: list[str], writing: Writing | None = None) -> None:
        """Write a complete checkpoint that the library's own loader opens; weights one at a time."""

    @abstractmethod
    def save_config(self, folder: Path, classes: list[str]) -> None:
        """Write a checkpoint without its weights: configuration with class names, and what inputs are prepared with."""

    @abstractmethod
    def reload(self, folder: Path) -> nn.Module:
        """Open what `save` wrote, by the library's public loader, float32, evaluation mode."""

    @property
    @abstractmethod
    def transform(self) -> Any:
        """The checkpoint's own input transform: a tokenizer, or an image transform."""

    def targets(self, spec: MethodSpec, network: nn.Module | None = None) -> list[LinearView]:
        """The layers a method works on, in `network` (default: the checkpoint's own)."""
        network = network if network is not None else self.network
        views = select_targets(network, spec)
        if spec.targets not in SELECTORS:
            return views
        own = self.own_classifier(network)  # members have heads of their own, and `features` never calls this one
        kept = [v for v in views if all(v.module is not m for m in own)]
        if not kept:
            raise CheckpointError(
                "No layer is left to train: the only linear layer is the classifier.", "Use method.name: heads_only."
            )
        return kept

    def own_classifier(self, network: nn.Module) -> list[nn.Module]:
        """The library's own classifier inside `network`, which `features` does not call; [] when it was taken out."""
        return []

    def fresh(self, share: bool = True) -> nn.Module:
        """A structural copy of the network. `share`: the copy uses the same weight tensors (they stay frozen)."""
        memo: dict[int, Any] = {}
        if share:
            memo = {id(p): p for p in self.network.parameters()}
            memo |= {id(b): b for b in self.network.buffers()}
        return copy.deepcopy(self.network, memo)

    def parameter_count(self) -> int:
        """Parameters of the network without its own head."""
        return sum(p.numel() for p in self.network.parameters())

    def digest(self) -> str:
        """Content hash of the weights; the same for a hub download and its local copy."""
        h = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            h.update(name.encode())
            h.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes() if tensor.numel() else b"")
        return h.hexdigest()

    def config_facts(self) -> dict[str, Any]:
        """The fields of the configuration that decide numbers, as JSON holds them; see `identity`."""
        return {}

    def input_facts(self) -> dict[str, Any]:
        """What inputs are prepared with, as JSON holds it; see `identity`."""
        return {}


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` stands (dotted path)."""
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)


def looks_random(views: list[LinearView]) -> bool:
    """Whether the targeted weights look like a fresh initialisation.

    Pretraining leaves heavy-tailed spectra: the largest singular value stands far above the Marchenko-Pastur edge of a
    random matrix with the same variance, (sqrt(O) + sqrt(I)) · std. Fresh Gaussian or uniform weights end at it.
    """
    ratios = []
    for view in views:
        weight = view.weight_OI
        if min(weight.shape) < 16:
            continue
        edge = float(weight.std()) * (weight.shape[0] ** 0.5 + weight.shape[1] ** 0.5)
        if edge > 0:
            ratios.append(spectral_norm(weight) / edge)
    return bool(ratios) and sorted(ratios)[len(ratios) // 2] < 1.15


def spectral_norm(weight_OI: Tensor, steps: int = 30) -> float:
    """Largest singular value by power iteration from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(weight_OI.shape[1], generator=generator)
    for _ in range(steps):
        vector = weight_OI.T @ (weight_OI @ vector)
        vector = vector / vector.norm().clamp_min(1e-30)
    return float((weight_OI @ vector).norm())
