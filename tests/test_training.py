"""The loop: order, schedule, clipping, selection, resuming, and what it refuses.

Shapes: M members, N samples, B batch.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sve_cli.ensemble import Round
from sve_cli.errors import CheckpointError, DivergenceError
from sve_cli.prediction import predict_logits
from sve_cli.recipe.spec import TrainSpec
from sve_cli.registry import METHODS
from sve_cli.tasks.common import TokenisedText
from sve_cli.training import Checkpointer, check_all_called, epoch_batches, learning_rate_factor, mean_nll, round_steps, schedule
from sve_cli.training.update import clip_members, decay_members

Saved = tuple[dict[str, Tensor], dict[str, Any]]


def encoded(n: int, seed: int = 0) -> TokenisedText:
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    return TokenisedText([[1] * int(k) for k in lengths], np.zeros(n, np.int64), 0)


def run(lab: Any, loaded: Saved | None, **settings: Any) -> tuple[dict[str, Tensor], list[Saved], list[dict[str, Any]]]:
    """Train two epochs of five steps, from `loaded` if given; final state, every checkpoint, history."""
    saved: list[Saved] = []

    def save(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        saved.append(({n: t.detach().clone() for n, t in tensors.items()}, json.loads(json.dumps(meta))))

    dropout = settings.pop("dropout", "off")
    network, method = settings.pop("network", "bert"), settings.pop("method", "sve")
    built = lab.build(network, method, n_train=36, params={"dropout": dropout})
    spec = TrainSpec(**{"epochs": 2, "batch_size": 8, "precision": "float32", "checkpoint_minutes": 0.0, **settings})
    built.trainer(
        spec, 2e-2, 0, Checkpointer(save, loaded), lambda members: predict_logits(built.ensemble, built.test, 8, members)[0]
    ).fit()
    return built.ensemble.state(), saved, [{k: v for k, v in r.items() if k != "seconds"} for r in built.log.records]


SAVING = {"save_memory": True, "dropout": "checkpoint"}


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation": 2},
        {"member_execution": "sequential"},
        {"method": "sve_band"},
        {"method": "lora_ensemble", "network": "vit"},
    ],
    ids=["accumulation", "sequential", "sve_band", "lora_ensemble"],
)
def test_saving_memory_takes_the_same_steps_to_the_bit(lab: Any, settings: dict[str, Any]) -> None:
    saving, plain = run(lab, None, **settings, **SAVING)[0], run(lab, None, **settings, dropout="checkpoint")[0]
    assert all(torch.equal(saving[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulation": 2, "weight_decay": 0.1}, {"member_execution": "sequential", "dropout": "checkpoint"}, {"network": "vit"},
     SAVING],
    ids=["plain", "accumulation", "dropout", "vit", "saving"],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bits(lab: Any, settings: dict[str, Any]) -> None:
    state, saved, history = run(lab, None, **settings)
    assert [s[1]["done_steps"] for s in saved] == list(range(1, 11))
    assert len(history) == 2
    for k in (3, 4, 9):  # mid-epoch, end of the first epoch, after the last step
        again, later, told = run(lab, saved[k], **settings)
        assert all(torch.equal(again[n], t) for n, t in state.items())
        assert len(later) == 9 - k
        assert told == (history if k < 4 else history[1:] if k < 9 else [])


@pytest.mark.parametrize("begun", ["bfloat16", "float32"])
def test_a_resumed_run_keeps_the_precision_it_began_in(lab: Any, monkeypatch: pytest.MonkeyPatch, begun: str) -> None:
    """`auto` may mean another one on another machine."""
    state, saved, _ = run(lab, None, precision=begun)
    assert {meta["precision"] for _, meta in saved} == {begun}
    monkeypatch.setattr(schedule, "WIDE", 1)
    monkeypatch.setattr(schedule, "_multiplies_bfloat16", lambda: begun == "float32")
    again = run(lab, saved[4], precision="auto")[0]
    assert all(torch.equal(again[n], t) for n, t in state.items())
    other = run(lab, None, precision="auto")[0]  # from the start it is the other precision, and not the same bits
    assert not all(torch.equal(other[n], t) for n, t in state.items())


@pytest.mark.parametrize(
    ("asked", "width", "able", "dtype"),
    [
        ("auto", 192, True, torch.bfloat16), ("auto", 191, True, torch.float32), ("auto", 768, False, torch.float32),
        ("float32", 768, True, torch.float32), ("bfloat16", 8, False, torch.bfloat16),
    ],
)  # fmt: skip
def test_the_precision_fits_processor_and_network(
    monkeypatch: pytest.MonkeyPatch, asked: Any, width: int, able: bool, dtype: torch.dtype
) -> None:
    """Most matrices have a side of `width`; embeddings, a convolution and vectors do not decide."""
    monkeypatch.setattr(schedule, "_multiplies_bfloat16", lambda: able)
    blocks = [layer for _ in range(2) for layer in (nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width))]
    network = nn.Sequential(nn.Conv2d(3, width, 4), nn.Embedding(9, width), *blocks)
    assert schedule.training_precision(TrainSpec(precision=asked), torch.device("cpu"), network) == dtype
    empty = schedule.training_precision(TrainSpec(), torch.device("cpu"), nn.LayerNorm(4))
    assert empty == torch.float32


QUICK = ("sve", "heads_only", "lora_ensemble")  # the others' resumption is a slow check


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_every_method_goes_on_to_the_same_bits(lab: Any, method: str) -> None:
    """From a checkpoint in the middle of every round: whole networks are trained one after another, cycles from each other."""
    settings = {"method": method, "dropout": "checkpoint"}
    state, saved, history = run(lab, None, **settings)
    rounds = {s[1]["round"]: s for s in saved[:-1]}  # the last of each
    middle = {s[1]["round"]: s for s in saved[: -len(saved) // 2]}
    for checkpoint in (*rounds.values(), *middle.values()):
        again, _, told = run(lab, checkpoint, **settings)
        assert all(torch.equal(again[n], t) for n, t in state.items())
        assert told == history[len(history) - len(told) :]
    assert len(rounds) == len(lab.build("bert", method).ensemble.rounds())


def test_the_rest_of_a_run_does_depend_on_the_optimiser(lab: Any) -> None:
    """The test above would pass without a restored optimiser if that did not matter."""
    state, saved, _ = run(lab, None)
    tensors, meta = saved[5]
    blank = {n: torch.zeros_like(t) if n.endswith("exp_avg") else t for n, t in tensors.items()}
    assert not all(torch.equal(t, state[n]) for n, t in run(lab, (blank, meta))[0].items())


@pytest.mark.parametrize("n", [1, 31, 32, 100, 3000])
def test_every_sample_comes_once_per_epoch_and_member(n: int) -> None:
    orders = []
    for member in (0, 1, "all"):
        for epoch in (0, 1):
            batches = epoch_batches(encoded(n), 32, 0, member, epoch)
            assert sorted(np.concatenate(batches).tolist()) == list(range(n))
            assert len(batches) == math.ceil(n / 32)
            assert sorted(map(len, batches))[1:] == [32] * (len(batches) - 1)
            orders.append(tuple(np.concatenate(batches).tolist()))
    assert len(set(orders)) == (6 if n > 1 else 1)
    assert orders[0] == tuple(np.concatenate(epoch_batches(encoded(n), 32, 0, 0, 0)).tolist())


def test_batches_of_all_members_have_one_size_and_little_padding() -> None:
    data = encoded(1000)
    steps = list(zip(*(epoch_batches(data, 32, 0, m, 0) for m in range(4)), strict=True))
    assert all(len({len(b) for b in step}) == 1 for step in steps)
    assert data.lengths_N is not None
    padded = sum(4 * len(step[0]) * max(int(data.lengths_N[b].max()) for b in step) for step in steps)
    assert padded < 1.1 * 4 * data.lengths_N.sum()
    lengths = [float(data.lengths_N[s[0]].mean()) for s in steps]
    assert lengths != sorted(lengths)  # short and long batches come mixed


def test_without_lengths_batches_are_a_cut_permutation() -> None:
    data = encoded(20)
    data.lengths_N = None
    assert [len(b) for b in epoch_batches(data, 8, 0, 0, 0)] == [8, 8, 4]


def test_learning_rates_by_hand() -> None:
    def factors(**settings: Any) -> list[float]:
        return [learning_rate_factor(k, 10, TrainSpec(**settings)) for k in range(10)]

    assert factors(schedule="constant", warmup=0.0) == [1.0] * 10
    assert factors(schedule="linear", warmup=0.2) == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    cosine = factors(schedule="cosine", warmup=0.2)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert min(factors(schedule="constant", warmup=1.0)) > 0
    again = [learning_rate_factor(k, 10, TrainSpec(schedule="linear", warmup=0.2), restart=True) for k in range(10)]
    assert again == pytest.approx([1 - k / 10 for k in range(10)])
    assert round_steps(TrainSpec(epochs=6), Round((0,), 0.5), 7) == 21
    assert round_steps(TrainSpec(epochs=3), Round((0,), 0.25), 9) == 7
    assert round_steps(TrainSpec(epochs=1), Round((0,), 0.01), 9) == 1
    assert round_steps(TrainSpec(epochs=0), Round((0,)), 9) == 0


def test_each_role_has_its_own_learning_rate(lab: Any) -> None:
    """Adam's first step is the learning rate itself, times the sign of the gradient."""
    built = lab.build("bert", n_train=8)
    before = built.ensemble.state()
    after = built.fit(lr=1e-2, head_lr=3e-3, bias_lr=2e-3, clip=None)
    for end, rate in (("delta_MR", 1e-2), ("query.bias_MO", 2e-3), ("weight_MCF", 3e-3)):
        steps = torch.cat([(after[n] - before[n]).abs().flatten() for n in after if n.endswith(end)])
        assert float(steps.median()) == pytest.approx(rate, rel=0.01), end
    default = lab.build("bert", n_train=8).fit(lr=1e-2, clip=None)
    steps = torch.cat([(default[n] - before[n]).abs().flatten() for n in default if n.endswith("query.bias_MO")])
    assert float(steps.median()) == pytest.approx(1e-3, rel=0.01)


def test_clipping_limits_each_member_alone(lab: Any) -> None:
    built = lab.build("bert")
    parameters = built.ensemble.trainable().values()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[0] = 3.0
        parameter.grad[1] = 1e-6
        parameter.grad[2] = 0.5
    clip_members(built.ensemble, (0, 1, 2), 1.0)
    norms = [math.sqrt(sum(float(p.grad[m].square().sum()) for p in parameters)) for m in range(3)]
    numbers = sum(p[0].numel() for p in parameters)
    assert norms == pytest.approx([1.0, 1e-6 * math.sqrt(numbers), 1.0], rel=1e-4)


def test_clipping_leaves_members_of_other_rounds_alone_and_small_gradients_as_they_are(lab: Any) -> None:
    built = lab.build("bert")
    parameters = built.ensemble.trainable().values()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    clip_members(built.ensemble, (1,), 1.0)
    assert all(torch.equal(p.grad[[0, 2]], torch.full_like(p.grad[[0, 2]], 3.0)) for p in parameters)
    assert math.sqrt(sum(float(p.grad[1].square().sum()) for p in parameters)) == pytest.approx(1.0, rel=1e-4)
    before = [p.grad.mul_(0.1).clone() for p in parameters]
    clip_members(built.ensemble, (1,), 1.0)
    assert all(torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True))


def test_decay_leaves_members_of_other_rounds_alone(lab: Any) -> None:
    built = lab.build("bert")
    trainer = built.trainer(TrainSpec(weight_decay=1.0, head_weight_decay=1.0, head_lr=0.1), lr=0.1)
    before = built.ensemble.state()
    for parameter in built.ensemble.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    decay_members(built.ensemble, (1,), trainer.spec, trainer._base_lr, 1.0)
    for name, tensor in built.ensemble.state().items():
        assert torch.equal(tensor[[0, 2]], before[name][[0, 2]])
    head = built.ensemble.state()["heads.weight_MCF"]
    torch.testing.assert_close(head[1], 0.9 * before["heads.weight_MCF"][1])


def test_the_best_epoch_is_kept(lab: Any) -> None:
    """Validation says that the second of four epochs is best."""
    built, states, quality = lab.build("bert"), [], iter([1.0, 3.0, 2.0, 0.5])

    def validate(members: Any) -> np.ndarray:
        states.append(built.ensemble.state())
        return next(quality) * np.stack([np.eye(3)[built.test.labels_N]] * len(members)).astype(np.float32)

    spec = {"epochs": 4, "batch_size": 8, "precision": "float32"}
    fit = built.trainer(TrainSpec(**spec), validate=validate).fit()
    assert fit.best[0]["epoch"] == 2
    assert fit.steps == 12
    assert all(torch.equal(t, states[1][n]) for n, t in built.ensemble.state().items())
    assert [r["epoch"] for r in built.log.records] == [1, 2, 3, 4]
    built, quality = lab.build("bert"), iter([1.0, 3.0, 2.0, 0.5])
    built.trainer(TrainSpec(**spec, select="last"), validate=validate).fit()
    assert all(torch.equal(t, states[-1][n]) for n, t in built.ensemble.state().items())
    assert not torch.equal(states[-1]["heads.weight_MCF"], states[-3]["heads.weight_MCF"])


def test_a_snapshot_is_what_the_last_step_of_its_cycle_left(lab: Any) -> None:
    """Validation says that the first of two epochs of each cycle is best."""
    built, states, rates, quality = lab.build("bert", "snapshot", members=2), [], [], iter([3.0, 1.0, 3.0, 1.0])

    def validate(members: Any) -> np.ndarray:
        states.append(built.ensemble.state())
        return next(quality) * np.stack([np.eye(3)[built.test.labels_N]] * len(members)).astype(np.float32)

    trainer = built.trainer(TrainSpec(epochs=4, batch_size=8, precision="float32", warmup=0.5), validate=validate)
    trainer.log.step = lambda *a: rates.append(trainer.optimiser.param_groups[0]["lr"])
    fit = trainer.fit()
    assert [best["epoch"] for best in fit.best] == [1, 1] and fit.steps == 12
    names = [{n for n in states[0] if n.startswith(f"network.{m}.")} for m in range(2)]
    ends, now = (states[1], states[3]), built.ensemble.state()
    assert all(torch.equal(now[n], end[n]) for own, end in zip(names, ends, strict=True) for n in own)
    assert all(torch.equal(now["heads.weight_MCF"][m], end["heads.weight_MCF"][m]) for m, end in enumerate(ends))
    assert any(not torch.equal(states[0][n], states[1][n]) for n in names[0])
    shares = [rate / max(rates) for rate in rates]
    assert shares[:6] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 3 / 4, 1 / 4])  # warm-up, then cosine
    assert shares[6:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])  # a restart at the full rate


def test_seconds_are_those_of_all_processes(lab: Any) -> None:
    saved: list[Saved] = []
    built = lab.build("bert")
    built.trainer(
        TrainSpec(**(spec := {"epochs": 2, "batch_size": 8})), checkpointer=Checkpointer(lambda t, m: saved.append((t, m)))
    ).fit()
    tensors, meta = saved[0]
    assert 0 < meta["seconds"] < saved[1][1]["seconds"]
    again = lab.build("bert")
    nothing = Checkpointer(lambda t, m: None, (tensors, {**meta, "seconds": 1000.0}))
    fit = again.trainer(TrainSpec(**spec), checkpointer=nothing).fit()
    assert 1000 < fit.seconds < 1900 and fit.samples_per_second > 1  # the rate is of what this process did


def test_divergence_is_an_error(lab: Any) -> None:
    built = lab.build("bert")
    with torch.no_grad():
        built.ensemble.heads.weight_MCF[1] = float("nan")
    with pytest.raises(DivergenceError, match="member 1 is not finite at step 1"):
        built.fit()
    with pytest.raises(DivergenceError, match="first batch"):
        built.trainer(TrainSpec(precision="float32", batch_size=8)).dry_step()
    other = lab.build("bert")
    with pytest.raises(DivergenceError, match="validation NLL"):
        other.trainer(TrainSpec(epochs=1, precision="float32"), validate=lambda m: np.full((3, 11, 3), np.nan, np.float32)).fit()


def test_collapsed_members_are_named(lab: Any) -> None:
    for spread, warned in ((0.0, 1), (1.0, 0)):
        built = lab.build("bert")
        votes = np.random.default_rng(0).normal(size=(3, 11, 3)).astype(np.float32) * spread + np.eye(3, dtype=np.float32)[0] * (
            1 - spread
        )
        built.trainer(TrainSpec(epochs=1, precision="float32"), validate=lambda m, v=votes: v).fit()
        said = [w for w in built.log.warnings if "collapsed" in w]
        assert len(said) == warned
        assert all("docs/troubleshooting.md" in w and "sigma_init" not in w for w in said)  # not every method has such keys


def test_a_dry_step_changes_nothing(lab: Any) -> None:
    built = lab.build("bert")
    before = built.ensemble.state()
    built.trainer(TrainSpec(precision="float32", batch_size=8)).dry_step()
    assert all(torch.equal(t, before[n]) for n, t in built.ensemble.state().items())
    assert all(p.grad is None for p in built.ensemble.trainable().values())


class ReadsWeight(nn.Module):
    """A wrapper that computes with a layer's weight instead of calling the layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


def test_a_layer_that_is_read_and_never_called_is_refused(lab: Any) -> None:
    built = lab.build("vit", targets=["fc1", "fc2"])
    block = built.ensemble.network.blocks[1].mlp
    block.fc2 = ReadsWeight(block.fc2)
    with pytest.raises(CheckpointError, match=r"never calls its layer 'blocks\.1\.mlp\.fc2' \(1 such\)"):
        built.fit()
    fine = lab.build("vit", targets=["fc1", "fc2"])
    fine.fit()
    check_all_called(fine.ensemble)


def test_class_weights_and_label_smoothing_by_hand(lab: Any) -> None:
    built = lab.build("bert", members=1)
    built.train.labels_N = np.array([0] * 12 + [1] * 8 + [2] * 4)
    rows = np.array([0, 1, 12, 20])
    with torch.no_grad():
        log_probs = torch.log_softmax(built.ensemble(built.train.batch(rows)).logits_MBC[0], -1).double()
        target = log_probs[torch.arange(4), torch.tensor([0, 0, 1, 2])]
        weighted = built.trainer(TrainSpec(class_weights="balanced", precision="float32"))._loss((0,), [rows], (0, 0, 0))
        smoothed = built.trainer(TrainSpec(label_smoothing=0.1, precision="float32"))._loss((0,), [rows], (0, 0, 0))
    weights = torch.tensor([24 / 36, 24 / 36, 24 / 24, 24 / 12]).double()  # N / (C · count)
    assert float(weighted) == pytest.approx(float(-(weights * target).mean()), rel=1e-5)
    assert float(smoothed) == pytest.approx(float((-0.9 * target - 0.1 * log_probs.mean(-1)).mean()), rel=1e-5)


def test_class_weights_count_in_smoothing_and_classes_without_rows_do_not_count(lab: Any) -> None:
    built = lab.build("bert", members=1)
    built.train.labels_N = np.array([0] * 18 + [2] * 6)
    rows = np.array([0, 1, 20])
    trainer = built.trainer(TrainSpec(class_weights="balanced", label_smoothing=0.2, precision="float32"))
    with torch.no_grad():
        log_probs = torch.log_softmax(built.ensemble(built.train.batch(rows)).logits_MBC[0], -1).double()
        found = trainer._loss((0,), [rows], (0, 0, 0))
    weights_C = trainer.objective.class_weights_C.double()
    assert weights_C[built.train.labels_N].mean() == pytest.approx(1.0, rel=1e-6) and weights_C[0] == pytest.approx(24 / 36)
    own = weights_C[[0, 0, 2]] * (0.8 * -log_probs[torch.arange(3), torch.tensor([0, 0, 2])] + 0.2 * -log_probs.mean(-1))
    assert float(found) == pytest.approx(float(own.mean()), rel=1e-5)


def test_a_move_to_another_device_leaves_one_copy_of_each_weight(lab: Any) -> None:
    for network in ("bert", "resnet"):
        built = lab.build(network)
        for module in (built.ensemble, built.backbone.network):  # as .to(another device) does
            module._apply(lambda tensor: tensor.clone())
        linear = next(iter(built.ensemble.member_linears()))
        assert linear.weight_OI.data_ptr() != linear.view.native_weight.data_ptr()
        linear.share_weight()
        assert linear.weight_OI.data_ptr() == linear.view.native_weight.data_ptr()
        assert linear.weight_OI.shape == (linear.view.native_weight.shape[0], linear.view.native_weight[0].numel())


def test_augmented_micro_batches_draw_anew(lab: Any) -> None:
    built = lab.build("vit", params={"member_batches": "shared"})
    built.train.augment, built.train.augments = "flip", True
    seen: list[int] = []
    batch = built.train.batch

    def watched(rows: Any, generator: Any = None) -> Any:
        if generator is not None:  # None: not a training batch
            seen.append(generator.initial_seed())
        return batch(rows, generator)

    built.train.batch = watched
    built.fit(accumulation=2)
    assert len(seen) == 6
    assert len(set(seen)) == 6


def test_validation_nll_is_of_the_mean_probability() -> None:
    logits_MNC = torch.log(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]))
    assert mean_nll(logits_MNC, torch.tensor([0]), None) == pytest.approx(-math.log(0.7), rel=1e-6)
    three = torch.tensor([[[0.0, 0.0, 9.0]]])
    assert mean_nll(three, torch.tensor([0]), torch.tensor([[True, True, False]])) == pytest.approx(math.log(2), rel=1e-6)
