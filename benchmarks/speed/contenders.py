"""What is timed: optimiser steps of SVE and of its rivals, each as strong as it can be written.

A contender is a function of the turn's number that takes the step of all M members. Full fine-tuning and the paper's form are
written out by hand without any of this project's layers; SVE and LoRA-Ensemble are what `sve train` runs.
Shapes: M members, B batch, O out, I in, R rank, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.machine import device, precision
from benchmarks.speed.networks import Bench
from sve_cli.backbone import replace_module
from sve_cli.ensemble import Ensemble
from sve_cli.factors import in_out
from sve_cli.methods.full_networks import frozen_parameters
from sve_cli.recipe.spec import MethodSpec, TrainSpec
from sve_cli.registry import METHODS
from sve_cli.tasks.common import tensor_to
from sve_cli.training import Checkpointer, Trainer, member_dropout

CLIP = 1.0
RATE = 1e-5  # what is learned does not matter here; small, so that nothing diverges


def build(bench: Bench, method: str, members: int | None = None, **params: Any) -> Ensemble:
    """An untrained ensemble of a registered method."""
    entry = METHODS.resolve(method)
    spec = MethodSpec(name=method, members=members or bench.members)
    ensemble: Ensemble = entry.build(bench.backbone, bench.task, spec, bench.store, entry.Params(**params), 0)
    return ensemble.to(device())


class _NoLog:
    """The loop's log, kept quiet."""

    def step(self, done: int, total: int, text: str) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


class EnsembleSteps:
    """A registered method through the project's own training loop."""

    def __init__(self, bench: Bench, method: str, train: dict[str, Any] | None = None, **params: Any) -> None:
        self.bench = bench
        self.ensemble = build(bench, method, **params)
        self.network = self.ensemble.network
        spec = TrainSpec(**{"epochs": 0, "batch_size": bench.batch_size, "clip": CLIP, "precision": precision(), **(train or {})})
        quiet, nothing = _NoLog(), Checkpointer(lambda tensors, meta: None)
        self.trainer = Trainer(self.ensemble, bench.encoded, None, lambda m: np.zeros(0), spec, RATE, 0, quiet, nothing)
        self.trainer.fit()  # no epoch: makes the optimiser

    def __call__(self, turn: int) -> np.ndarray:
        one = self.trainer.rounds[0]
        return self.trainer._step(one, self.bench.rows(turn), 1_000_000, (0, 0, turn))


class FullSteps:
    """M steps of full fine-tuning, one network each: fused AdamW over all weights, the gradient norm clipped.

    The M steps are taken on one copy of the weights, one after another, which is faster than M copies.
    `products`: what matrix products run in; None: as everywhere here. `joined`: one step on all M batches at once instead, for
    comparing memory at the same number of tokens.
    """

    def __init__(self, bench: Bench, products: str | None = None, joined: bool = False) -> None:
        self.bench, self.joined = bench, joined
        self.network = bench.backbone.fresh(share=False)
        self.head = nn.Linear(bench.backbone.feature_dim, len(bench.task.classes)).to(device())
        frozen = frozen_parameters(self.network, bench.backbone, "train")
        self.parameters = [p.requires_grad_(True) for p in self.network.parameters() if id(p) not in frozen]
        self.parameters += list(self.head.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0, fused=True)
        self.dtype = getattr(torch, products or precision())

    def __call__(self, turn: int) -> None:
        self.network.train()
        rows = self.bench.rows(turn)
        for member, part in enumerate([np.concatenate(rows)] if self.joined else rows):
            inputs = tensor_to(self.bench.encoded.batch(part), device())
            with member_dropout(0, (member,), (turn,)), _products_in(self.dtype):
                features_BF = self.bench.backbone.features(self.network, inputs)
            loss = F.cross_entropy(self.head(features_BF.float()), _labels(self.bench, part))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)


def _products_in(dtype: torch.dtype) -> Any:
    return torch.autocast(device().type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _labels(bench: Bench, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(bench.encoded.labels_N[rows]).to(device())


class PaperLinear(nn.Module):
    """W_m = U diag(s_m) Vt made at every step, then an ordinary linear layer (arXiv 2601.22068)."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, factors: Any, members: int) -> None:
        super().__init__()
        a_RI, b_OR = in_out(weight_OI, factors)
        self.register_buffer("a_RI", a_RI)
        self.register_buffer("b_OR", b_OR)
        self.gain_MR = nn.Parameter(1 + 0.01 * torch.randn(members, len(a_RI)))
        self.bias_MO = None if bias_O is None else nn.Parameter(bias_O.detach().repeat(members, 1))
        self.member = 0

    def forward(self, x: Tensor) -> Tensor:
        weight_OI = (self.b_OR * self.gain_MR[self.member]) @ self.a_RI
        return F.linear(x, weight_OI, None if self.bias_MO is None else self.bias_MO[self.member])


class PaperSteps:
    """SVE as its paper writes it: member after member, every matrix multiplied out."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.network = bench.backbone.fresh()
        self.layers = []
        for view in bench.backbone.targets(MethodSpec(name="sve"), self.network):
            factors = bench.store.get(view.weight_OI, view.name)
            layer = PaperLinear(view.weight_OI, view.bias, factors, bench.members)
            replace_module(self.network, view.name, layer)
            self.layers.append(layer)
        self.network.to(device())
        classes, width = len(bench.task.classes), bench.backbone.feature_dim
        self.heads = nn.ModuleList([nn.Linear(width, classes) for _ in range(bench.members)]).to(device())
        self.parameters = [p for layer in self.layers for p in layer.parameters()] + list(self.heads.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0, fused=True)
        self.dtype = getattr(torch, precision())

    def __call__(self, turn: int) -> None:
        self.network.train()
        for member, part in enumerate(self.bench.rows(turn)):
            for layer in self.layers:
                layer.member = member
            inputs = tensor_to(self.bench.encoded.batch(part), device())
            with member_dropout(0, (member,), (turn,)), _products_in(self.dtype):
                features_BF = self.bench.backbone.features(self.network, inputs)
            loss = F.cross_entropy(self.heads[member](features_BF.float()), _labels(self.bench, part))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def make(bench: Bench, name: str) -> Any:
    """A contender by name."""
    quarter = max(bench.backbone.feature_dim // 4, 1)
    makers: dict[str, Any] = {
        "sve": lambda: EnsembleSteps(bench, "sve"),
        "sve_saving": lambda: EnsembleSteps(bench, "sve", {"save_memory": True}),
        "sve_sequential": lambda: EnsembleSteps(bench, "sve", {"member_execution": "sequential"}),
        "sve_quarter": lambda: EnsembleSteps(bench, "sve", rank=quarter),
        "lora": lambda: EnsembleSteps(bench, "lora_ensemble", rank=8),
        "full": lambda: FullSteps(bench),
        "full_joined": lambda: FullSteps(bench, joined=True),
        "paper": lambda: PaperSteps(bench),
    }
    return makers[name]()
