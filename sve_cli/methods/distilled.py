"""The student of a distillation: one member of the teacher's own family, with one output more than classes.

It starts at the mean of the members: of their singular values, off-diagonals, biases, norms, low-rank products and heads. The
further output is the log-precision of a Dirichlet distribution over class probabilities (`metrics/dirichlet.py`), linear in the
logarithm of the entropy of the class probabilities: what is unlike the training inputs has a large entropy, and features there
may be anything.
Shapes: M members, B batch, C classes, F features, R rank, O out, I in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sve_cli.backbone import Backbone, Head, Inputs
from sve_cli.ensemble import Ensemble, FactorSource, MemberHeads
from sve_cli.errors import NotExportable
from sve_cli.methods.low_rank import LowRank
from sve_cli.methods.matrix import MatrixLinear
from sve_cli.methods.member_norms import MemberNorm
from sve_cli.methods.sve import SVELinear
from sve_cli.methods.sve_band import BandedLinear
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import METHODS, ONE_NETWORK

LOG_PRECISION = "log precision"
LEAST_ENTROPY = 1e-3  # nats, added to the entropy before its logarithm
FAMILIES = ("sve", "svfit", "sve_lora", "sve_band", "heads_only")
# The student starts at the mean, all of its singular values train at once, and its targets are given: no noise, no dropout.
PLAIN = {"sigma_init": 0.0, "bias_init": 0.0, "rank_start": None, "dropout": "off"}


def require_distillable(method: str, n_members: int) -> None:
    """Refuse what cannot be distilled.

    Raises:
        NotExportable: members whose parameters have no meaningful mean, or one member only.
    """
    if method not in FAMILIES:
        several = [m for m in FAMILIES if m not in ONE_NETWORK]
        raise NotExportable(
            f"The members of {method} have no meaningful mean to start a distilled network from.",
            f"Distil a run of {', '.join(several[:-1])} or {several[-1]}, or export merged members.",
        )
    if n_members < 2:
        raise NotExportable(
            "This run has one member, so it has no disagreement to distil.", "Export merged, or train several members."
        )


def log_entropy(probs: Tensor) -> Tensor:
    """log(entropy + 1e-3) over the last axis, entropy in nats: what the log-precision is linear in."""
    return (torch.special.entr(probs).sum(-1) + LEAST_ENTROPY).log()


class EvidenceHeads(MemberHeads):
    """Class logits as ever, and behind them one output more, the log-precision: weight · log(entropy + 1e-3) + bias.

    Its two numbers are not trained: `Student.calibrate` sets them.
    """

    evidence_weight_M: Tensor
    evidence_bias_M: Tensor

    def __init__(self, heads: Sequence[Head], trainable: bool) -> None:
        super().__init__(heads, trainable)
        self.register_buffer("evidence_weight_M", torch.zeros(len(heads)))
        self.register_buffer("evidence_bias_M", torch.zeros(len(heads)))

    def forward(self, features_MBF: Tensor, members: Sequence[int]) -> Tensor:
        index = list(members)
        logits_MBC = super().forward(features_MBF, members)
        log_entropy_MB = log_entropy(torch.softmax(logits_MBC.detach().double(), -1)).float()
        evidence_MB = self.evidence_weight_M[index][:, None] * log_entropy_MB + self.evidence_bias_M[index][:, None]
        return torch.cat([logits_MBC, evidence_MB.unsqueeze(-1).to(logits_MBC.dtype)], -1)


@dataclass(frozen=True)
class StudentTask:
    """The task as the student's method sees it: one output more."""

    teacher: MemberHeads
    classes: list[str]

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        """The mean of the teacher's heads, and a log-precision."""
        return EvidenceHeads([_mean_head(self.teacher)] * n_members, self.teacher.trainable)


@dataclass(frozen=True)
class Student:
    """The distilled network: an ensemble of one whose last output is the log-precision."""

    ensemble: Ensemble
    classes: list[str]

    def slow_heads(self, share: float) -> None:
        """Train the class head, which starts at the mean, with this share of `head_lr`."""
        for group in self.ensemble.groups:
            if group.role == "head":
                group.lr_scale = share

    def calibrate(self, temperature: float, line: tuple[float, float]) -> None:
        """Divide the class logits by a temperature, within the head, and set the log-precision's weight and bias."""
        heads = self.ensemble.heads
        assert isinstance(heads, EvidenceHeads) and (heads.trainable or temperature == 1)
        with torch.no_grad():
            for tensor in (heads.weight_MCF, heads.bias_MC):
                if tensor is not None:
                    tensor.div_(temperature)
            heads.evidence_weight_M.fill_(line[0])
            heads.evidence_bias_M.fill_(line[1])

    def model(self) -> nn.Module:
        """The library's own classifier with C logits."""
        return self.ensemble.backbone.with_head(self.ensemble.member_network(0), self.ensemble.heads.head(0, self.classes))

    def evidence(self) -> dict[str, Tensor]:
        """The log-precision's weight (1,) and bias (1,) on log(entropy + 1e-3), entropy in nats."""
        heads = self.ensemble.heads
        assert isinstance(heads, EvidenceHeads)
        return {"weight": heads.evidence_weight_M.detach().clone(), "bias": heads.evidence_bias_M.detach().clone()}

    def outputs(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and log-precision (B,), by the definition of the one member."""
        self.ensemble.set_training(False)
        with torch.inference_mode(), self.ensemble.merged(0):
            found_BC = self.ensemble(inputs).logits_MBC[0].float()
        return found_BC[:, :-1], found_BC[:, -1]


def build_student(teacher: Ensemble, backbone: Backbone, spec: MethodSpec, factors: FactorSource, seed: int) -> Student:
    """One member of the teacher's family at the mean of its members.

    Args:
        spec: the run's method.

    Raises:
        NotExportable: see `require_distillable`.
    """
    require_distillable(spec.name, teacher.n_members)
    method = METHODS.resolve(spec.name)
    params = method.Params(**spec.params)
    fixed: dict[str, Any] = {key: value for key, value in PLAIN.items() if hasattr(params, key)}
    if hasattr(params, "lora_rank"):
        fixed["lora_rank"] = params.lora_rank * teacher.n_members  # what the mean of the members' products has
    if hasattr(params, "shared_bands"):  # the mean has an entry wherever a member has one
        fixed |= {"shared_bands": params.shared_bands + params.bands * teacher.n_members, "bands": 0}
        _require_room(teacher, fixed["shared_bands"])
    task = StudentTask(teacher.heads, [*teacher.classes, LOG_PRECISION])
    one = replace(spec, members=1)
    ensemble: Ensemble = method.build(backbone, task, one, factors, replace(params, **fixed), seed)
    start_at_mean(ensemble, teacher)
    return Student(ensemble, list(teacher.classes))


def _require_room(teacher: Ensemble, bands: int) -> None:
    for linear in teacher.member_linears():
        if isinstance(linear, BandedLinear) and linear.rank <= bands:
            raise NotExportable(
                f"The mean of {teacher.n_members} members has {bands} off-diagonals, and '{linear.view.name}' has room for "
                f"{linear.rank - 1}.",
                "Train fewer members or with fewer method.params.bands, or leave the layer out with method.exclude.",
            )


def start_at_mean(student: Ensemble, teacher: Ensemble) -> None:
    """Put the student's layers and norms at the mean of the teacher's members."""
    members = tuple(range(teacher.n_members))
    theirs = {linear.view.name: linear for linear in teacher.member_linears()}
    with torch.no_grad():
        for linear in student.member_linears():
            other = theirs[linear.view.name]
            if isinstance(linear, SVELinear) and isinstance(other, SVELinear):
                gain_1R = other.gain_MR(members).mean(0, keepdim=True)
                linear.delta_MR.copy_((gain_1R - 1) * (1.0 if linear.relative else linear.s_R))
            if isinstance(linear, MatrixLinear) and isinstance(other, MatrixLinear) and other.bias_MO is not None:
                assert linear.bias_MO is not None
                linear.bias_MO.copy_(other.bias_MO.mean(0, keepdim=True))
            if isinstance(linear, BandedLinear) and isinstance(other, BandedLinear):
                linear.c_SR.copy_(torch.cat([other.c_SR, other.c_MKR.flatten(0, 1) / len(members)]))
            mine, lora = getattr(linear, "lora", None), getattr(other, "lora", None)
            if isinstance(mine, LowRank) and isinstance(lora, LowRank):
                _mean_product(mine, lora, members)
        norms = {m.name: m for m in teacher.network.modules() if isinstance(m, MemberNorm)}
        for norm in (m for m in student.network.modules() if isinstance(m, MemberNorm)):
            for own, its in zip(norm.parameters(), norms[norm.name].parameters(), strict=True):
                own.copy_(its.mean(0, keepdim=True))


def _mean_product(own: LowRank, teacher: LowRank, members: tuple[int, ...]) -> None:
    """The mean of the members' scale · B A as one product; exact, as its rank is at most the sum of theirs."""
    mean_OI = torch.stack([teacher.delta_OI(m) for m in members]).double().mean(0) / own.scale
    u_OK, s_K, vt_KI = torch.linalg.svd(mean_OI, full_matrices=False)
    k = min(own.A_MRI.shape[1], len(s_K))
    root_K = s_K[:k].sqrt()
    own.A_MRI.zero_()
    own.B_MOR.zero_()
    own.A_MRI[0, :k] = (root_K[:, None] * vt_KI[:k]).float()
    own.B_MOR[0, :, :k] = (u_OK[:, :k] * root_K).float()


def _mean_head(heads: MemberHeads) -> Head:
    if not heads.trainable:  # all the same, and to stay so to the bit
        return heads.head(0, [])
    bias_C = None if heads.bias_MC is None else heads.bias_MC.detach().mean(0)
    return Head(heads.weight_MCF.detach().mean(0), bias_C, [])
