"""The store of what the frozen first blocks give: training and resuming are the same, what is refused, what is not made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sve_cli.errors import SveError
from sve_cli.recipe.spec import TrainSpec
from sve_cli.training import Checkpointer
from sve_cli.training.prefix import Prefix, prefix_of
from sve_cli.workflows.transfer import HeadsOfFrozen

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "float32", "select": "last"}
FROZEN = {"vit": "blocks.0.mlp.fc2", "bert": "bert.encoder.layer.0.intermediate.dense"}
QUIET: dict[str, Any] = {"dropout": "off"}


def built(lab: Any, network: str, double: bool = False, **params: Any) -> Any:
    made = lab.build(network, last_blocks=1, params={**QUIET, **params}, members=2)
    if double:
        made.ensemble.network.double()  # heads stay float32, and round what differs by 1e-16 to the same numbers
        make = made.train.batch
        made.train.batch = lambda rows, generator=None: {
            k: v.double() if v.is_floating_point() else v for k, v in make(rows, generator).items()
        }
    return made


def _logits_of(made: Any) -> Any:
    return lambda inputs, member: made.ensemble(inputs, (member,)).logits_MBC


def gradients(made: Any, megabytes: int) -> dict[str, Tensor]:
    """Every gradient of one step, as the loop takes it."""
    trainer = made.trainer(TrainSpec(**{**SETTINGS, "epochs": 1}, prefix_cache_mb=megabytes, clip=None))
    taken: dict[str, Tensor] = {}

    def keep(*args: Any) -> None:
        taken.update({n: p.grad.clone() for n, p in made.ensemble.trainable().items() if n not in taken})

    trainer._clip = keep
    trainer.fit()
    assert (trainer.prefix is not None and trainer.prefix.stored is not None) == (megabytes > 0)
    return taken


@pytest.mark.parametrize(("network", "batches"), [("vit", "independent"), ("bert", "shared"), ("llama", "independent")])
def test_the_gradients_are_those_without_it(lab: Any, network: str, batches: str) -> None:
    plain = gradients(built(lab, network, double=network != "llama", member_batches=batches), 0)
    stored = gradients(built(lab, network, double=network != "llama", member_batches=batches), 50)
    assert plain.keys() == stored.keys()
    allowed = 1e-4 if network == "llama" else 1e-9  # its tables of angles are float32
    for name, gradient in plain.items():
        torch.testing.assert_close(stored[name], gradient, rtol=allowed, atol=allowed, msg=name)
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("network", ["vit", "bert"])
def test_members_that_share_batches_share_the_frozen_blocks(lab: Any, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(shared: bool) -> tuple[dict[str, Tensor], int]:
        made = built(lab, network, double=True, member_batches="shared")
        if not shared:
            monkeypatch.setattr("sve_cli.training.loop.prefix_of", lambda *args: None)
        rows: list[int] = []
        frozen = made.ensemble.network.get_submodule(FROZEN[network])
        frozen.register_forward_hook(lambda module, args, output: rows.append(len(output)))
        return gradients(made, 0), rows[-1]

    (shared, once), (plain, each) = step(True), step(False)
    assert each == 2 * once == 2 * SETTINGS["batch_size"]
    for name, gradient in plain.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("how", [{"last_blocks": None, "params": QUIET}, {"last_blocks": 1, "params": {"dropout": "checkpoint"}}])
def test_members_that_share_batches_compute_what_is_random_or_trains_themselves(lab: Any, how: dict[str, Any]) -> None:
    how = {**how, "params": {**how["params"], "member_batches": "shared"}}
    trainer = lab.build("bert", members=2, **how).trainer(TrainSpec(**{**SETTINGS, "epochs": 1}))
    trainer.fit()
    assert trainer.prefix is None


def test_the_frozen_blocks_are_not_computed(lab: Any) -> None:
    made = built(lab, "bert")
    calls: list[int] = []
    frozen = made.ensemble.network.get_submodule(FROZEN["bert"])
    frozen.register_forward_hook(lambda *args: calls.append(1))
    made.fit(**SETTINGS, prefix_cache_mb=50)
    assert len(calls) <= 9  # three to see whether members mix; probing, filling and checking; six steps follow
    before = len(calls)
    made.training_logits()
    assert len(calls) == before + 1  # outside of the loop all is as it was


def test_a_resumed_run_gives_the_same_to_the_bit(lab: Any) -> None:
    whole, saved = built(lab, "bert"), []
    spec = TrainSpec(**SETTINGS, prefix_cache_mb=50)
    keep = Checkpointer(lambda tensors, meta: saved.append(({k: v.clone() for k, v in tensors.items()}, dict(meta))))
    whole.trainer(spec, checkpointer=keep).fit()
    resumed = built(lab, "bert")
    resumed.trainer(spec, checkpointer=Checkpointer(lambda tensors, meta: None, saved[0])).fit()
    assert all(torch.equal(t, resumed.ensemble.state()[n]) for n, t in whole.ensemble.state().items())


def test_a_store_that_is_too_large_is_not_made(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Prefix.megabytes
    made = built(lab, "vit")
    monkeypatch.setattr(Prefix, "megabytes", lambda self: 1000 * whole(self))
    trainer = made.trainer(TrainSpec(**{**SETTINGS, "epochs": 1, "batch_size": 24}, prefix_cache_mb=50))
    trainer.fit()
    tokens, width = 17, 48
    assert whole(Prefix(made.ensemble, made.train, _logits_of(made), torch.device("cpu"))) == 24 * tokens * width * 4 / 1e6
    assert trainer.prefix is None and "more than train.prefix_cache_mb" in made.log.warnings[0]


@pytest.mark.parametrize(("last_blocks", "shares"), [(1, True), (None, False)])
def test_blocks_frozen_after_each_member_trained_its_own_are_not_shared(lab: Any, last_blocks: int | None, shares: bool) -> None:
    made = lab.build("vit", last_blocks=last_blocks, params={**QUIET, "member_batches": "shared"})
    made.fit(**SETTINGS)
    view = HeadsOfFrozen(made.ensemble)
    prefix = prefix_of(view, made.train, TrainSpec(**SETTINGS), torch.float32, torch.device("cpu"), made.log.warn)
    assert (prefix is not None) == shares


@pytest.mark.parametrize(
    ("how", "saying"),
    [
        ({"last_blocks": None, "params": QUIET}, "no block is frozen"),
        ({"last_blocks": 1, "params": {"dropout": "checkpoint"}}, "have dropout"),
    ],
)
def test_what_is_refused(lab: Any, how: dict[str, Any], saying: str) -> None:
    with pytest.raises(SveError, match=saying):
        lab.build("bert", **how).fit(**SETTINGS, prefix_cache_mb=50)


def test_augmented_images_are_refused(lab: Any) -> None:
    made = built(lab, "vit")
    made.train.augments = True
    with pytest.raises(SveError, match="augmented anew"):
        made.fit(**SETTINGS, prefix_cache_mb=50)
