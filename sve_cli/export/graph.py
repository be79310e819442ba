"""A network as one graph with named inputs and outputs: what `onnx` and `torch_export` write.

One network gives logits (B, C), probabilities (B, C) and entropy (B,); a whole ensemble, whose members run one after another,
gives the mean probability (B, C), its entropy (B,) and the mutual information (B,), in nats, and its members' logits (M, B, C).

Shapes: M members, B batch, C classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Inputs
from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.errors import NotExportable, SveError
from sve_cli.export.artifact import Options, Source
from sve_cli.registry import nearest
from sve_cli.statistics import member_weights

ONE = ("logits", "probabilities", "entropy")
MANY = ("probabilities", "entropy", "mutual_information", "logits")


class OneNetwork(nn.Module):
    """Inputs by name -> (logits, probabilities, entropy), or logits alone."""

    def __init__(self, backbone: Backbone, model: nn.Module, names: Sequence[str], logits_only: bool = False) -> None:
        super().__init__()
        self.logits_only = logits_only
        self.model = model.eval()
        self.read = backbone.logits
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        logits_BC = self.read(self.model, dict(zip(self.names, inputs, strict=True))).float()
        if self.logits_only:
            return (logits_BC,)
        log_probs_BC = logits_BC.log_softmax(-1)
        probs_BC = log_probs_BC.exp()
        return logits_BC, probs_BC, -(probs_BC * log_probs_BC).sum(-1)


class ManyNetworks(nn.Module):
    """Inputs by name -> (the ensemble's probability, its entropy, mutual information, logits of every member).

    The probability is the evaluated one: the members' mean, with fitted weights where there are some, or (`how` "logits") the
    softmax of their mean logits. Mutual information is that of the mean probability in any case, see `statistics`.
    """

    def __init__(self, backbone: Backbone, models: Sequence[nn.Module], names: Sequence[str], how: str = "probs") -> None:
        super().__init__()
        weights_M = member_weights(how, len(models))
        equal_M = torch.full((len(models),), 1.0 / len(models))
        self.register_buffer("weights_M", equal_M if weights_M is None else torch.from_numpy(weights_M).float())
        self.of_logits = how == "logits"
        self.models = nn.ModuleList(model.eval() for model in models)
        self.read = backbone.logits
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        logits_MBC = torch.stack([self.read(model, named).float() for model in self.models])
        log_probs_MBC = logits_MBC.log_softmax(-1)
        weights_M = torch.as_tensor(self.weights_M)
        log_mean_BC = (log_probs_MBC + weights_M.log()[:, None, None]).logsumexp(0)
        mean_entropy_B = _entropy(log_mean_BC)
        expected_B = (weights_M[:, None] * _entropy(log_probs_MBC)).sum(0)
        log_probs_BC = logits_MBC.mean(0).log_softmax(-1) if self.of_logits else log_mean_BC
        entropy_B = _entropy(log_probs_BC) if self.of_logits else mean_entropy_B
        return log_probs_BC.exp(), entropy_B, (mean_entropy_B - expected_B).clamp_min(0.0), logits_MBC


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


@dataclass(frozen=True)
class Graph:
    """A module to be traced, with real inputs to trace it on.

    Attributes:
        module: positional inputs in the order of `names`, outputs in the order of `outputs`.
        names, example: of the inputs; on the CPU, at least two rows.
        outputs: names.
        text: whether axis 1 of the inputs is a number of tokens.
    """

    module: nn.Module
    names: tuple[str, ...]
    example: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    text: bool

    def axes(self) -> dict[int, str]:
        """The axes of every input whose length is free."""
        return {0: "batch", 1: "sequence"} if self.text else {0: "batch"}


@dataclass(frozen=True)
class Plan:
    """One graph to write: its folder, what it claims to be, its module."""

    folder: str
    member: int | None
    claim: str


def plans(members: Sequence[int], options: Options, target: str) -> list[Plan]:
    """What a target writes: the ensemble, the averaged network, or a folder a member.

    Raises:
        SveError: --graph-of names none of these.
    """
    of = options.graph_of
    if of not in ("ensemble", "averaged", "members"):
        raise SveError(f"--graph-of '{of}' names no network.", nearest(of, ["ensemble", "averaged", "members"]))
    if of == "members":
        return [Plan(f"{target}-member-{m}", m, "member") for m in members]
    return [Plan(target if of == "ensemble" else f"{target}-averaged", None, of)]


def graph(source: Source, plan: Plan) -> Graph:
    """The module of a plan, on the CPU in float32.

    Raises:
        NotExportable: this ensemble has no such network, a language model's ensemble, or no inputs to trace it on.
    """
    ensemble, backbone = source.ensemble, source.ensemble.backbone
    if source.example is None:
        raise NotExportable("A graph is traced on real inputs, and there are none.", "Export from a run's folder.")
    letters = isinstance(backbone, CausalLM)  # questions have different numbers of options
    if letters and plan.claim == "ensemble":
        raise NotExportable(
            "A graph does not know which of the letters are options of a question, so that it cannot average their probabilities.",
            "Use --graph-of members, which puts out the letters' logits.",
        )
    example = {name: tensor.cpu() for name, tensor in _two_rows(source.example()).items()}
    names = tuple(example)
    if plan.claim == "ensemble":
        models = [ensemble.member_model(m) for m in range(ensemble.n_members)]
        module: nn.Module = ManyNetworks(backbone, models, names, source.aggregate)
    else:
        model = ensemble.averaged_model() if plan.member is None else ensemble.member_model(plan.member)
        module = OneNetwork(backbone, model, names, logits_only=letters)
    module = module.float().cpu().eval().requires_grad_(False)
    outputs = MANY if plan.claim == "ensemble" else ONE[:1] if letters else ONE
    return Graph(module, names, tuple(example.values()), outputs, backbone.modality != "image")


def _two_rows(inputs: Inputs) -> Inputs:
    """At least two rows: a batch of one would be traced as a constant."""
    return {name: tensor if len(tensor) > 1 else tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
