"""Snapshot ensemble: one full fine-tuning with a cyclic cosine rate; the network at the end of each cycle is a member.

Huang et al. 2017 (arXiv 1704.00109). The M cycles share the steps of one network, so that training costs what `single` does.
As there, a member is the network at its cycle's last step, whatever `train.select` says, and a cycle that follows another begins
at the full rate; the first has the warm-up of `train.warmup`, and `train.schedule` gives the shape of all (cosine: the paper's).
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
    """Choices of snapshot."""

    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")
    embeddings: Literal["train", "frozen"] = doc(EMBEDDINGS, "train")


class Cycles(FullNetworks):
    """Member m starts where member m - 1 ended; each cycle is a round with a schedule of its own."""

    def rounds(self) -> list[Round]:
        share = 1 / self.n_members
        return [Round((m,), share, init_from=m - 1 if m else None, keep_last=True) for m in range(self.n_members)]


class Snapshot:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """The rate of `single`, reached anew in every cycle."""
        return 1e-4

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`."""
        return build_full_networks(Cycles, backbone, task, spec.members, seed, params.dropout, params.embeddings)
