"""SVFit: one network whose k largest singular values train, with the rest of every matrix frozen.

Sun et al., arXiv 2409.05926: W = W_residual + U_k diag(s_k) V_kt, of which s_k trains. That is `sve` with one member, top-k and
no noise at the start. Published settings: the values that hold over 99 % of a matrix's squared sum. "16 times fewer parameters
than LoRA" fits rank 768 on query and value of RoBERTa-base, where it is all of them, but neither that rank nor the targets nor
the learning rate is certain here; hence a rank that holds 96 % in a MiniLM of width 384, on all targets, at SVE's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble, FactorSource, TaskView
from sve_cli.errors import SveError
from sve_cli.methods import sve
from sve_cli.recipe.spec import MethodSpec, doc


@dataclass(frozen=True)
class Params:
    """Choices of SVFit."""

    rank: int = doc("How many of a layer's singular values train, largest first; all where a layer has fewer.", 256, low=1)
    parametrisation: Literal["relative", "absolute"] = doc(
        "What is optimised: s itself (absolute, as published) or the gain s/S (relative). They want different learning rates.",
        "absolute",
    )
    dropout: Literal["off", "checkpoint"] = doc("Whether the checkpoint's dropout is active in training.", "checkpoint")


class SVFit:
    """The method's registry entry."""

    Params = Params

    @staticmethod
    def default_lr(params: Any) -> float:
        """That of sve in the same parametrisation; the published rate is not certain here."""
        return sve.SVE.default_lr(params)

    @staticmethod
    def build(backbone: Backbone, task: TaskView, spec: MethodSpec, factors: FactorSource, params: Any, seed: int) -> Ensemble:
        """See `Method.build`.

        Raises:
            SveError: more than one member is asked for.
        """
        if spec.members != 1:
            raise SveError(f"svfit is one network, but method.members is {spec.members}.", "Write method.members: 1, or use sve.")
        fixed = sve.Params(
            sigma_init=0.0,
            parametrisation=params.parametrisation,
            biases="frozen",
            member_batches="shared",
            dropout=params.dropout,
            rank=params.rank,
        )
        return sve.SVE.build(backbone, task, spec, factors, fixed, seed)
