"""How many directions of a member's change a LoRA adapter keeps in each layer.

A member of SVE is W + Σ_r Δσ_r u_r v_rᵀ, so its best approximation of rank k keeps the k largest |Δσ|; no further
decomposition is needed. Other methods' changes are decomposed (`MemberLinear.directions`).
Shapes: O out, I in, R rank, B batch, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sve_cli.backbone import Inputs, LinearView
from sve_cli.ensemble import Ensemble
from sve_cli.errors import NotExportable, SveError

AUTO_ENERGY = 0.95
SERVING_RANKS = (8, 16, 32, 64, 128, 256)  # the values vLLM has taken for max_lora_rank in all versions looked at


@dataclass(frozen=True)
class Directions:
    """What a member adds to one layer: left_OR @ right_RI, in directions of size_R = |Δσ|, and the layer it belongs to."""

    view: LinearView
    weight_OI: Tensor
    left_OR: Tensor
    right_RI: Tensor
    size_R: Tensor

    def kept(self, k: int) -> Tensor:
        """Indices (K,) of the k largest."""
        return self.size_R.double().argsort(descending=True, stable=True)[:k]

    def cut(self, k: int) -> tuple[Tensor, Tensor]:
        """(left (O, K), right (K, I)) of the k largest."""
        index = self.kept(k)
        return self.left_OR[:, index], self.right_RI[index]

    def energy(self, k: int) -> float:
        """Share of Σ Δσ² in the k largest; 1 where nothing changed."""
        if k >= len(self.size_R):
            return 1.0
        square_R = self.size_R.double().square()
        total = float(square_R.sum())
        return float(square_R[self.kept(k)].sum()) / total if total > 0 else 1.0


def member_directions(ensemble: Ensemble, member: int) -> dict[str, Directions]:
    """Layer -> what this member adds there.

    Raises:
        NotExportable: a layer whose change has no directions, or no layer changes at all.
    """
    found = {}
    for linear in ensemble.member_linears():
        parts = linear.directions(member)
        if parts is None:
            raise NotExportable(
                f"The change of the layer '{linear.view.name}' has no directions that an adapter could keep.",
                "Use --to merged.",
            )
        found[linear.view.name] = Directions(linear.view, linear.weight_OI, *parts)
    if not found:
        raise NotExportable("These members change no layer, so there is nothing for a LoRA adapter to hold.", "Use --to merged.")
    return found


@dataclass(frozen=True)
class RankRule:
    """`--rank`: a number for all layers, or what decides."""

    by: Literal["auto", "count", "energy", "fidelity", "full"]
    value: float = 0.0


def parse_rank(text: str) -> RankRule:
    """K, energy:SHARE, fidelity:GAP, full, or auto: 95 % of Σ Δσ², and all of a change that is low-rank itself.

    Raises:
        SveError: it is none of these.
    """
    how, _, number = text.strip().partition(":")
    if how in ("auto", "full") and not number:
        return RankRule("full") if how == "full" else RankRule("auto", AUTO_ENERGY)
    if re.fullmatch(r"[1-9]\d*", text.strip()):
        return RankRule("count", float(text))
    if how in ("energy", "fidelity") and re.fullmatch(r"\d*\.?\d+(e-?\d+)?", number.lower()):
        value = float(number)
        if value > 0 and (how == "fidelity" or value <= 1):
            return RankRule("energy" if how == "energy" else "fidelity", value)
    raise SveError(
        f"--rank '{text}' says no rank.",
        "Write a number, energy:0.95 (share of Δσ²), fidelity:0.01 (largest logit gap), full or auto.",
    )


@dataclass(frozen=True)
class Ranks:
    """How many directions each layer keeps, and the rank `r` the adapter states; `uniform`: all layers are padded to it."""

    kept: dict[str, int]
    r: int
    uniform: bool


def choose_ranks(
    ensemble: Ensemble, member: int, directions: Mapping[str, Directions], rule: RankRule, serving: bool, inputs: Inputs | None
) -> Ranks:
    """How many directions of each layer are kept.

    Args:
        serving: one rank for all layers, rounded up to one of `SERVING_RANKS`.
        inputs: validation inputs, for "fidelity".

    Raises:
        SveError: no serving rank is large enough.
    """
    full = {name: len(d.size_R) for name, d in directions.items()}
    largest = max(full.values())
    if rule.by == "count":
        ranks = {name: min(int(rule.value), n) for name, n in full.items()}
        wanted = int(rule.value)
    elif rule.by in ("auto", "energy"):
        low = {name for name, d in directions.items() if rule.by == "auto" and full[name] < min(d.weight_OI.shape)}
        ranks = {name: n if name in low else smallest_rank(directions[name], rule.value) for name, n in full.items()}
        wanted = max(ranks.values())
    elif rule.by == "fidelity":
        assert inputs is not None, "fidelity is measured on inputs"
        wanted = rank_by_fidelity(ensemble, member, directions, rule.value, inputs, serving)
        ranks = {name: min(wanted, n) for name, n in full.items()}
    else:
        wanted, ranks = largest, full
    if not serving:
        return Ranks(ranks, max(ranks.values()), rule.by in ("count", "fidelity"))
    allowed = next((r for r in SERVING_RANKS if r >= wanted), None)
    if allowed is None:
        raise SveError(
            f"This export needs rank {wanted}, and serving engines take at most {SERVING_RANKS[-1]}.",
            "Ask for less with --rank, leave out --serving-ranks, or export merged members.",
        )
    return Ranks({name: min(allowed, n) for name, n in full.items()}, allowed, uniform=True)


def smallest_rank(directions: Directions, share: float) -> int:
    """The fewest directions (at least one) that hold this share of Σ Δσ²."""
    square_R = directions.size_R.double().square().sort(descending=True).values
    total = float(square_R.sum())
    if total == 0:
        return 1
    enough_R = square_R.cumsum(0) >= share * total * (1 - 1e-12)
    return int(enough_R.to(torch.uint8).argmax()) + 1 if bool(enough_R.any()) else len(square_R)


def rank_by_fidelity(
    ensemble: Ensemble, member: int, directions: Mapping[str, Directions], tolerance: float, inputs: Inputs, serving: bool
) -> int:
    """The first of 1, 2, 4, … (or of the serving ranks) at which no logit differs from the full member's by more than this.

    Raises:
        SveError: no serving rank is enough.
    """
    largest = max(len(d.size_R) for d in directions.values())
    ladder = [*SERVING_RANKS] if serving else [2**i for i in range(largest.bit_length()) if 2**i < largest]
    network, gap = ensemble.member_network(member), float("inf")
    full_BC = member_logits(ensemble, member, network, inputs)
    for k in ladder if serving else [*ladder, largest]:
        cut(network, directions, dict.fromkeys(directions, k))
        gap = float((member_logits(ensemble, member, network, inputs) - full_BC).abs().max())
        if gap <= tolerance or k >= largest:
            return k
    raise SveError(
        f"At rank {ladder[-1]}, the largest that serving engines take, the logits of member {member} are still off by {gap:.1e}.",
        "Allow more with --rank fidelity:, leave out --serving-ranks, or export merged members.",
    )


def cut(network: nn.Module, directions: Mapping[str, Directions], ranks: Mapping[str, int]) -> None:
    """Cut a plain member network at these ranks, in place; its biases, norms and head stay in full."""
    for name, found in directions.items():
        left_OK, right_KI = found.cut(ranks[name])
        weight_OI = found.weight_OI + left_OK @ right_KI
        network.get_submodule(name).weight = nn.Parameter(found.view.to_native(weight_OI), requires_grad=False)


def member_logits(ensemble: Ensemble, member: int, network: nn.Module, inputs: Inputs) -> Tensor:
    """Logits (B, C) of a plain network with this member's head."""
    device = ensemble.heads.weight_MCF.device
    head = ensemble.heads.head(member, ensemble.classes)
    with torch.inference_mode():
        on_device = {k: v.to(device) for k, v in inputs.items()}
        features_BF = ensemble.backbone.features(network.eval().to(device), on_device)
        return torch.nn.functional.linear(features_BF.float(), head.weight_CF, head.bias_C)
