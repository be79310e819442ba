"""One network, fully fine-tuned: what every ensemble is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble, FactorSource, TaskView
from sve_cli.errors import SveError
from sve_cli.methods.full_networks import EMBEDDINGS, FullNetworks, build_full_networks
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of single."""

    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")
    embeddings: Literal["train", "frozen"] = doc(EMBEDDINGS, "train")


class Single:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """The usual rate of full fine-tuning of transformers."""
        return 1e-4

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: more than one member is asked for.
        """
        if spec.members != 1:
            raise SveError(f"single is one network, but method.members is {spec.members}.", "Write method.members: 1.")
        return build_full_networks(FullNetworks, backbone, task, 1, seed, params.dropout, params.embeddings)
