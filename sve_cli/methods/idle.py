"""Settings of a recipe that change nothing beside the others, each with the reason, so that nobody waits for their effect."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sve_cli.ensemble import Ensemble
from sve_cli.recipe.spec import TrainSpec

SIGMA = ("sigma_init", "decay_toward", "form", "sigma_grad_tokens", "rank", "rank_start", "widen_over")
LORA = ("lora_rank", "lora_start", "lora_alpha", "lora_lr_scale")


def idle_choices(params: Any) -> list[str]:
    """The choices of `method.params` that are set, but beside the others change nothing; each with the reason."""
    reasons: dict[str, str] = {}
    if getattr(params, "biases", "member") != "member":
        reasons["bias_init"] = f"no member has biases of its own (biases: {params.biases})"
    if getattr(params, "form", "auto") in ("factored", "residual"):
        reasons["sigma_grad_tokens"] = f"these products take all tokens (form: {params.form})"
    if getattr(params, "rank_start", None) is None:
        reasons["widen_over"] = "nothing widens (rank_start: null)"
    if getattr(params, "init", None) == "signs":
        reasons["init_std"] = "both vectors start as signs (init: signs)"
    if getattr(params, "sigma_targets", None) == "none":
        reasons |= dict.fromkeys(SIGMA, "no singular value trains (sigma_targets: none)")
    if getattr(params, "lora_targets", None) == "none":
        reasons |= dict.fromkeys(LORA, "no layer has a low-rank update (lora_targets: none)")
    return [f"method.params.{name} is without effect: {reasons[name]}." for name in _given(params) if name in reasons]


def idle_settings(ensemble: Ensemble, params: Any, train: TrainSpec, features_once: bool) -> list[str]:
    """What is set of `method.params` and `train`, but changes nothing in this ensemble; each with the reason.

    Args:
        features_once: every step reads features that were computed before the first.
    """
    roles = {group.role for group in ensemble.groups if group.parameters}
    found = []
    if getattr(params, "train_norms", False) and "norm" not in roles:
        found.append("method.params.train_norms is without effect: no trained block has a norm with weights to train.")
    reasons: dict[str, str] = {}
    if not roles & {"bias", "norm"}:
        reasons["bias_lr"] = "no bias or norm trains at a rate of its own"
    if roles == {"head"}:
        reasons |= dict.fromkeys(("lr", "bias_lr", "weight_decay"), "nothing trains but the heads (train.head_lr)")
    if features_once:
        once = "the network computes each sample's features once, before the first step"
        reasons |= dict.fromkeys(("prefix_cache_mb", "member_execution", "save_memory"), once)
    return found + [f"train.{name} is without effect: {reasons[name]}." for name in _given(train) if name in reasons]


def _given(settings: Any) -> list[str]:
    """Names of what is not at its default."""
    return [f.name for f in fields(settings) if getattr(settings, f.name) != f.default]
