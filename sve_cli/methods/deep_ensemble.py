"""Deep ensemble: M independent fine-tunings, each with its own head seed and data order.

Lakshminarayanan et al. 2017 (arXiv 1612.01474), without adversarial training, started from one checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble, FactorSource, Round, TaskView
from sve_cli.methods.full_networks import EMBEDDINGS, FullNetworks, build_full_networks
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of deep_ensemble."""

    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")
    embeddings: Literal["train", "frozen"] = doc(EMBEDDINGS, "train")


class IndependentNetworks(FullNetworks):
    """Members are trained one after another, each from the checkpoint, with the optimiser state of one in memory."""

    def rounds(self) -> list[Round]:
        return [Round((m,)) for m in range(self.n_members)]


class DeepEnsemble:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """The rate of `single`: a member is one."""
        return 1e-4

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`."""
        return build_full_networks(IndependentNetworks, backbone, task, spec.members, seed, params.dropout, params.embeddings)
