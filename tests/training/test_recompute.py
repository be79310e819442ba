"""`train.save_memory`: the same numbers to the bit, fewer bytes kept, and nothing computed again that was written over."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sve_cli.recipe.spec import TrainSpec
from sve_cli.training import loop, recompute
from sve_cli.training.recompute import recomputed


def gradients(
    lab: Any, save: bool, network: str, precision: str = "float32", method: str = "sve", **params: Any
) -> dict[str, Tensor]:
    """Every gradient of one step, as the loop takes it."""
    made = lab.build(network, method=method, n_train=24, params=params, members=2)
    trainer = made.trainer(TrainSpec(epochs=1, batch_size=24, precision=precision, clip=None, save_memory=save))  # type: ignore[arg-type]
    taken: dict[str, Tensor] = {}

    def take(*arguments: Any) -> None:  # in the place of weight decay, which comes between the gradients and the step
        taken.update({n: p.grad.clone() for n, p in made.ensemble.trainable().items()})

    with patch.object(loop, "decay_members", take):
        trainer.fit()
    return taken


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "SMALL", 0)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit", {}),
    ("bert", {"dropout": "checkpoint"}),
    ("bert", {"dropout": "checkpoint", "precision": "bfloat16"}),
    ("bert", {"form": "materialised", "train_norms": True}),
    ("llama", {}),
    ("gpt2", {"dropout": "checkpoint"}),
    ("resnet", {}),
    ("vit", {"method": "lora_ensemble"}),
    ("bert", {"method": "sve_band"}),
]


@pytest.mark.parametrize(("network", "how"), CASES, ids=[f"{n}-{'-'.join(map(str, h.values()))}" for n, h in CASES])
def test_the_gradients_are_the_same_to_the_bit(lab: Any, network: str, how: dict[str, Any]) -> None:
    plain, saved = (gradients(lab, save, network, **how) for save in (False, True))
    assert plain.keys() == saved.keys() and any(float(g.abs().max()) > 0 for g in plain.values())
    assert all(torch.equal(saved[name], gradient) for name, gradient in plain.items())


def kept_bytes(compute: Callable[[], Tensor], network: nn.Module, save: bool) -> int:
    """Bytes of the storages that a forward pass keeps alive, besides the network's own."""
    gc.collect()
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    found: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    if not save:
        with torch.autograd.graph.saved_tensors_hooks(see, lambda t: t):
            compute()
        return sum(found.values())
    pack = recompute._Watch.pack

    def counted(self: Any, tensor: Tensor) -> Any:
        kept = pack(self, tensor)
        return see(kept) if isinstance(kept, Tensor) else kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute._Watch, "pack", counted)
        with recomputed(network):
            compute()
    return sum(found.values())


def test_the_hidden_states_of_the_mlp_are_not_kept(lab: Any) -> None:
    made = lab.build("vit", n_train=4, members=2, params={"form": "factored"})
    inputs = made.train.batch(torch.arange(4).numpy())

    def compute() -> Tensor:
        return made.ensemble(inputs).logits_MBC

    hidden = [m for m in made.ensemble.member_linears() if m.view.name.endswith("fc1")]
    whole = sum(2 * 4 * 17 * m.weight_OI.shape[0] * 4 for m in hidden)  # members, images, tokens
    last_norm = 2 * 4 * 17 * 48 * 4  # the heads keep a view of its output
    plain, saved = (kept_bytes(compute, made.ensemble.network, save) for save in (False, True))
    assert whole > 0 and plain - saved == whole + last_norm


class Overwrites(nn.Module):
    """Writes into the result of its norm before a product asks to keep it."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.writes = nn.LayerNorm(8), nn.Linear(8, 8), writes

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.writes:
            y.mul_(2)
        return self.linear(y)


@pytest.mark.parametrize("writes", [False, True])
def test_what_was_written_over_is_kept(writes: bool) -> None:
    network, x = Overwrites(writes), torch.randn(5, 8)
    network(x).sum().backward()
    expected = network.linear.weight.grad
    assert expected is not None
    network.linear.weight.grad = None
    made: list[Any] = []
    original = recompute._Made.stand_in

    def seen(self: Any, tensor: Tensor) -> Any:
        made.append(original(self, tensor))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute._Made, "stand_in", seen)
        with recomputed(network):
            out = network(x)
    out.sum().backward()
    assert network.linear.weight.grad is not None and torch.equal(network.linear.weight.grad, expected)
    assert [m is None for m in made] == ([True] if writes else [False])


def test_afterwards_the_network_is_as_it_was() -> None:
    network = Overwrites(False)
    with pytest.raises(RuntimeError), recomputed(network):
        network(torch.randn(5, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
