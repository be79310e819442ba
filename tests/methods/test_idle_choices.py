"""Choices of `method.params` that do nothing beside the others are named."""

from __future__ import annotations

from typing import Any

import pytest

from sve_cli.methods.idle import idle_choices, idle_settings
from sve_cli.recipe.spec import DataSpec, MethodSpec, Recipe, TaskSpec, TrainSpec
from sve_cli.registry import METHODS
from sve_cli.workflows.session import Silent, open_session

SIGMA: list[dict[str, Any]] = [{"sigma_init": 0.2}, {"rank": 8}, {"decay_toward": "zero"}, {"sigma_grad_tokens": 0.5}]
LORA: list[dict[str, Any]] = [{"lora_rank": 32}, {"lora_lr_scale": 0.5}, {"lora_start": "peft"}]


@pytest.mark.parametrize(
    ("method", "given", "idle"),
    [
        ("sve", {"biases": "shared", "bias_init": 0.1}, "bias_init"),
        ("sve", {"biases": "frozen", "bias_init": 0.1}, "bias_init"),
        ("batch_ensemble", {"biases": "frozen", "bias_init": 0.1}, "bias_init"),
        ("sve", {"form": "factored", "sigma_grad_tokens": 0.5}, "sigma_grad_tokens"),
        ("sve_lora", {"form": "residual", "sigma_grad_tokens": 0.5}, "sigma_grad_tokens"),
        ("sve", {"widen_over": 0.9, "rank": 4}, "widen_over"),
        ("sve", {"widen_over": 0.9, "rank_start": 4}, None),
        ("sve", {"form": "materialised", "sigma_grad_tokens": 0.5}, None),
        ("sve", {"sigma_grad_tokens": 0.5}, None),
        ("sve", {"biases": "member", "bias_init": 0.1}, None),
        ("sve", {"biases": "shared"}, None),
        ("batch_ensemble", {"init": "signs", "init_std": 0.5}, "init_std"),
        ("batch_ensemble", {"init_std": 0.5}, None),
        *(("sve_lora", {"sigma_targets": "none", **one}, next(iter(one))) for one in SIGMA),
        *(("sve_lora", {"lora_targets": "none", **one}, next(iter(one))) for one in LORA),
        *(("sve_lora", one, None) for one in SIGMA + LORA),
    ],
)
def test_what_is_idle(method: str, given: dict[str, Any], idle: str | None) -> None:
    said = idle_choices(METHODS.resolve(method).Params(**given))
    assert [text.split()[0] for text in said] == ([f"method.params.{idle}"] if idle else [])


@pytest.mark.parametrize("method", list(METHODS))
def test_defaults_are_never_idle(method: str) -> None:
    assert idle_choices(METHODS.resolve(method).Params()) == []


def idle_of(lab: Any, network: str, method: str, train: dict[str, Any], once: bool = False, **params: Any) -> list[str]:
    made = lab.build(network, method, params=params)
    said = idle_settings(made.ensemble, METHODS.resolve(method).Params(**params), TrainSpec(**train), once)
    assert all(" is without effect: " in text for text in said)
    return [text.split()[0] for text in said]


def test_what_is_idle_where_nothing_but_the_heads_trains(lab: Any) -> None:
    rates = {"lr": 0.5, "bias_lr": 0.3, "weight_decay": 0.1, "head_lr": 1e-2}
    passes = {"prefix_cache_mb": 10, "member_execution": "sequential", "save_memory": True}
    first = ["train.lr", "train.bias_lr", "train.weight_decay"]
    assert idle_of(lab, "vit", "heads_only", rates | passes) == first  # images that are augmented pass the network at every step
    assert sorted(idle_of(lab, "vit", "heads_only", rates | passes, once=True)) == sorted([*first, *(f"train.{k}" for k in passes)])
    assert idle_of(lab, "vit", "heads_only", {}, once=True) == []
    assert idle_of(lab, "vit", "sve", rates | passes) == []


@pytest.mark.parametrize(
    ("method", "params", "idle"),
    [
        *((m, {}, True) for m in ("single", "deep_ensemble", "snapshot", "mc_dropout", "svfit", "lora_ensemble", "heads_only")),
        ("sve", {"biases": "frozen"}, True),
        ("sve", {"biases": "frozen", "train_norms": True}, False),
        *((m, {"biases": b}, False) for m in ("sve", "lora_ensemble", "batch_ensemble") for b in ("member", "shared")),
        *((m, {}, False) for m in ("sve_band", "sve_lora", "batch_ensemble")),
    ],
)
def test_the_rate_of_biases_is_idle_where_none_trains_at_it(lab: Any, method: str, params: dict[str, Any], idle: bool) -> None:
    assert idle_of(lab, "vit", method, {"bias_lr": 0.3}, **params) == ["train.bias_lr"] * idle
    assert idle_of(lab, "vit", method, {}, **params) == []


def test_norms_that_are_not_there_are_idle(lab: Any) -> None:
    assert idle_of(lab, "resnet", "sve", {}, train_norms=True) == ["method.params.train_norms"]  # all it has are batch norms
    assert idle_of(lab, "vit", "sve", {}, train_norms=True) == []


def test_a_session_says_what_is_idle(lab: Any) -> None:
    log = Silent()
    recipe = Recipe(
        lab.model("vit"),
        DataSpec("digits"),
        TaskSpec("image_classification"),
        MethodSpec("heads_only", members=2),
        TrainSpec(lr=0.5, member_execution="sequential"),
    )
    open_session(recipe, log, limit=20).build()
    said = [text for text in log.lines if "without effect" in text]
    assert [text.split()[1] for text in said] == ["train.lr", "train.member_execution"], said
