"""One network, fully fine-tuned: what every ensemble is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble, FactorSource, MemberContext, ParameterGroup, TaskView
from sve_cli.errors import SveError
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of single."""

    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")
    embeddings: Literal["train", "frozen"] = doc("Whether token embeddings train too.", "train")


class SingleEnsemble(Ensemble):
    """An ensemble of one, whose network is its own copy of the checkpoint."""

    def member_network(self, member: int) -> nn.Module:
        network = self.backbone.fresh(share=False)
        network.load_state_dict(self.network.state_dict())
        return network.requires_grad_(False)

    def averaged_model(self) -> nn.Module:
        return self.member_model(0)


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
        network = backbone.fresh(share=False)
        heads = task.make_heads(1, seed)
        context = MemberContext((0,))
        ensemble = SingleEnsemble(
            backbone, network, heads, task.classes, context, member_batches="shared", dropout=params.dropout == "checkpoint"
        )
        embeddings = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        frozen = _classifier_only(network, backbone) | (embeddings if params.embeddings == "frozen" else set())
        trained = {f"network.{n}": p for n, p in network.named_parameters() if id(p) not in frozen}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        ensemble.groups.append(ParameterGroup("backbone", trained, stacked=False))
        return ensemble


def _classifier_only(network: nn.Module, backbone: Backbone) -> set[int]:
    """Ids of the parameters of the library's own classifier, which the members' heads replace (not those tied to other layers)."""
    own = {id(m) for top in backbone.own_classifier(network) for m in top.modules()}
    elsewhere = {id(p) for m in network.modules() if id(m) not in own for p in m.parameters(recurse=False)}
    return {id(p) for top in backbone.own_classifier(network) for p in top.parameters()} - elsewhere
