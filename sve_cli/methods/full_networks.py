"""Members that are whole networks of their own: what `single`, `deep_ensemble` and `snapshot` share.

Shapes: M members, B batch, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Inputs
from sve_cli.ensemble import Ensemble, MemberContext, ParameterGroup, TaskView

EMBEDDINGS = "Whether embedding tables train too: of tokens, and of positions and token types where the network has such."


class FullNetworks(Ensemble):
    """M complete copies of the checkpoint, each with its head; `network` is their list."""

    def _features(self, folded: Inputs, members: tuple[int, ...]) -> Tensor:
        networks = self._networks()
        parts = {name: tensor.chunk(len(members)) for name, tensor in folded.items()}
        own = [self.backbone.features(networks[m], {name: part[i] for name, part in parts.items()}) for i, m in enumerate(members)]
        return torch.cat(own)

    def _networks(self) -> nn.ModuleList:
        assert isinstance(self.network, nn.ModuleList)
        return self.network

    def touched(self, members: tuple[int, ...]) -> set[str]:
        others = tuple(f"network.{m}." for m in range(self.n_members) if m not in members)
        return {name for name in super().touched(members) if not name.startswith(others)}

    def copy_member(self, source: int, target: int) -> None:
        super().copy_member(source, target)
        networks = self._networks()
        networks[target].load_state_dict(networks[source].state_dict())

    def member_network(self, member: int) -> nn.Module:
        network = self.backbone.fresh(share=False)
        network.load_state_dict(self._networks()[member].state_dict())
        return network.requires_grad_(False)

    def averaged_model(self) -> nn.Module:
        return self.member_model(0) if self.n_members == 1 else super().averaged_model()


def build_full_networks(
    kind: type[FullNetworks], backbone: Backbone, task: TaskView, n_members: int, seed: int, dropout: str, embeddings: str
) -> FullNetworks:
    """M fully trainable copies with their heads.

    Args:
        dropout: 'checkpoint' trains with the checkpoint's own dropout, 'off' without.
        embeddings: 'train' or 'frozen' embedding tables.
    """
    networks = nn.ModuleList([backbone.fresh(share=False) for _ in range(n_members)])
    heads = task.make_heads(n_members, seed)
    context = MemberContext(tuple(range(n_members)))
    ensemble = kind(backbone, networks, heads, task.classes, context, dropout=dropout == "checkpoint")
    trained: dict[str, nn.Parameter] = {}
    for m, network in enumerate(networks):
        frozen = frozen_parameters(network, backbone, embeddings)
        trained |= {f"network.{m}.{n}": p for n, p in network.named_parameters() if id(p) not in frozen}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    ensemble.groups.append(ParameterGroup("backbone", trained, stacked=False))
    return ensemble


def frozen_parameters(network: nn.Module, backbone: Backbone, embeddings: str) -> set[int]:
    """Ids of what full fine-tuning leaves alone: the library's own classifier, and all embedding tables if asked for."""
    frozen = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return _classifier_only(network, backbone) | (frozen if embeddings == "frozen" else set())


def _classifier_only(network: nn.Module, backbone: Backbone) -> set[int]:
    """Parameters of the library's own classifier, which the members' heads replace (not those tied to other layers)."""
    own = {id(m) for top in backbone.own_classifier(network) for m in top.modules()}
    elsewhere = {id(p) for m in network.modules() if id(m) not in own for p in m.parameters(recurse=False)}
    return {id(p) for top in backbone.own_classifier(network) for p in top.parameters()} - elsewhere
