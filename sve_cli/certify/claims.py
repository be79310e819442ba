"""Which live object an artifact claims to be: claim -> that object's outputs on the same samples.

A claim is computed from the ensemble by other code than the exporter's. A new one is one entry of `CLAIMS`.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sve_cli.certify.live import Live
from sve_cli.errors import SveError
from sve_cli.export.artifact import Artifact, averaging
from sve_cli.metrics.aggregate import aggregate
from sve_cli.registry import nearest

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Claim:
    """A kind of live object.

    Attributes:
        outputs: its outputs by name, as `certify/worker.py` describes them.
        sentence: what the artifact was compared with, for the certificate and the card.
        base: the same outputs of the untrained network with the same heads; None: not known.
    """

    outputs: Callable[[Live, Artifact], Outputs]
    sentence: Callable[[Artifact], str]
    base: Callable[[Live, Artifact], Outputs] | None = None


def claim_of(artifact: Artifact) -> Claim:
    """The claim an artifact names.

    Raises:
        SveError: there is no such claim.
    """
    if artifact.claim not in CLAIMS:
        raise SveError(f"Unknown claim '{artifact.claim}' of '{artifact.path.name}'.", nearest(artifact.claim, list(CLAIMS)))
    return CLAIMS[artifact.claim]


def _one(artifact: Artifact) -> int:
    assert artifact.member is not None, f"claim '{artifact.claim}' is about one member"
    return artifact.member


def _ranks(artifact: Artifact) -> dict[str, int]:
    ranks: dict[str, int] = artifact.facts["ranks"]
    return ranks


def _members(live: Live, of: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.stack([of(m) for m in range(live.ensemble.n_members)])


def _mixture(live: Live, logits_MNC: np.ndarray, artifact: Artifact) -> Outputs:
    """What a whole ensemble in one graph puts out, averaged as the artifact says; entropies in nats."""
    view = aggregate(live.predictions(logits_MNC), artifact.facts["aggregate"])
    entropies = {"entropy": view.entropy_N, "mutual_information": view.mutual_information_N}
    return {"logits": logits_MNC, "probabilities": view.probs_NC, **entropies}


def _member_sentence(artifact: Artifact) -> str:
    return f"Compared with member {artifact.member} by its definition; its numbers are this member's, not the ensemble's."


def _cut_sentence(artifact: Artifact) -> str:
    return (
        f"Compared with member {artifact.member} cut at the ranks this export states, computed anew from its definition; "
        "its numbers are neither the full member's nor the ensemble's."
    )


def _rounded_sentence(artifact: Artifact) -> str:
    whole = "the mean of the members" if artifact.member is None else f"member {artifact.member}"
    return (
        f"Compared with {whole} whose parameters were rounded to bfloat16, computed anew from its definition; both compute in "
        "float32. Its numbers are neither the unrounded network's nor the ensemble's."
    )


ROUNDED = Claim(
    lambda live, a: {"logits": live.rounded(a.member)},
    _rounded_sentence,
    lambda live, a: {"logits": live.rounded(a.member, trained=False)},
)

CLAIMS: dict[str, Claim] = {
    "member_bf16": ROUNDED,
    "averaged_bf16": ROUNDED,
    "member": Claim(
        lambda live, a: {"logits": live.member(_one(a))}, _member_sentence, lambda live, a: {"logits": live.base(_one(a))}
    ),
    "member_cut": Claim(
        lambda live, a: {"logits": live.member_cut(_one(a), _ranks(a))},
        _cut_sentence,
        lambda live, a: {"logits": live.base(_one(a))},
    ),
    "averaged": Claim(
        lambda live, a: {"logits": live.averaged()},
        lambda a: "Compared with the mean of the members' weights and heads, computed anew; its numbers are not the ensemble's.",
        lambda live, a: {"logits": live.base(None)},
    ),
    "members": Claim(
        lambda live, a: {"logits": _members(live, live.member)},
        lambda a: "Compared with every member of the ensemble by its definition, one by one.",
        lambda live, a: {"logits": _members(live, live.base)},
    ),
    "ensemble": Claim(
        lambda live, a: _mixture(live, _members(live, live.member), a),
        lambda a: (
            f"Compared with the whole ensemble: {averaging(a.facts['aggregate'])}, its entropy, the mutual information, all logits."
        ),
        lambda live, a: _mixture(live, _members(live, live.base), a),
    ),
    "live": Claim(
        lambda live, a: live.of(a.live),
        lambda a: f"Compared with the {a.kind} network that was evaluated; its numbers are not the ensemble's.",
    ),
}
