"""Every registered method on every kind of network. A new method is picked up from the registry by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from sve_cli.errors import CheckpointError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import METHODS

METHOD_NAMES = list(METHODS)
CORE = ("vit", "resnet", "bert", "llama")  # every method runs on these
FURTHER = ("bert_mean", "gpt2")  # and those whose layers others are made of on these too
ON_FURTHER = ("sve", "heads_only", "single", "lora_ensemble")


def pairs(*networks: str) -> list[tuple[str, str]]:
    """(method, network) for every registered method."""
    return [(m, n) for m in METHOD_NAMES for n in networks if n in CORE or m in ON_FURTHER]


everywhere = pytest.mark.parametrize(("method", "network"), pairs(*CORE, *FURTHER))
some_networks = pytest.mark.parametrize(("method", "network"), pairs("vit", "bert", "gpt2"))
each_method = pytest.mark.parametrize(("method", "network"), [(m, "bert") for m in METHOD_NAMES])


def plain_logits(lab: Any, built: Any, network: str) -> Tensor:
    """Logits (N, C) of the checkpoint by the library alone, one unpadded sample after another."""
    folder = lab.root / network
    rows = [built.test.batch(np.array([i])) for i in range(len(built.test))]
    with torch.no_grad():
        if network in ("vit", "resnet"):
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            return torch.cat([model(r["image"]) for r in rows])
        if network == "bert":
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            return torch.cat([model(input_ids=r["input_ids"]).logits for r in rows])
        if network == "bert_mean":
            model, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "2_Dense" / "model.safetensors")
            means = torch.cat([model(input_ids=r["input_ids"]).last_hidden_state.mean(1) for r in rows])
            return means @ head["linear.weight"].T + head["linear.bias"]
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        letters = [built.backbone.transform.convert_tokens_to_ids(c) for c in "ABCDE"]
        return torch.cat([model(input_ids=r["input_ids"]).logits[:, -1, letters] for r in rows])


@everywhere
def test_output_has_one_row_of_logits_and_features_per_member_and_sample(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method)
    m, inputs = built.ensemble.n_members, built.train.batch(np.arange(4))
    output = built.ensemble(inputs)
    assert output.logits_MBC.shape == (m, 4, len(built.task.classes))
    assert output.features_MBF.shape == (m, 4, built.backbone.feature_dim)
    stacked = {k: torch.stack([v] * m) for k, v in inputs.items()}
    torch.testing.assert_close(built.ensemble(stacked, per_member=True).logits_MBC, output.logits_MBC, atol=2e-5, rtol=0)


@everywhere
def test_a_quiet_start_is_the_checkpoint(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method, params=lab.quiet_start(method))
    expected = plain_logits(lab, built, network)
    assert expected.std() > 0.1  # a head of zeros would prove nothing
    for logits in (torch.from_numpy(built.logits()), built.training_logits()):
        torch.testing.assert_close(logits, expected.expand_as(logits), atol=1e-5, rtol=1e-5)


@everywhere
def test_exactly_the_declared_parameters_train(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method)
    declared = built.ensemble.trainable()
    assert {id(p) for p in built.ensemble.parameters() if p.requires_grad} == {id(p) for p in declared.values()}
    assert not any(p.requires_grad for p in built.backbone.network.parameters())
    assert sum(built.ensemble.parameter_table().values()) == sum(p.numel() for p in declared.values())
    frozen = {n: p.detach().clone() for n, p in built.ensemble.named_parameters() if not p.requires_grad}
    shared = {n: p.detach().clone() for n, p in built.backbone.network.named_parameters()}
    before = built.logits()
    built.fit()
    after = dict(built.ensemble.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    assert all(torch.equal(p, shared[n]) for n, p in built.backbone.network.named_parameters())
    assert np.abs(built.logits() - before).max(axis=(1, 2)).min() > 1e-3  # every member moved


@everywhere
def test_every_trained_parameter_gets_a_gradient(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method)
    logits_MBC = built.ensemble(built.train.batch(np.arange(8))).logits_MBC
    torch.nn.functional.cross_entropy(logits_MBC.flatten(0, 1), torch.arange(len(logits_MBC) * 8) % 3).backward()
    silent = [n for n, p in built.ensemble.trainable().items() if p.grad is None]
    pooler = [n for n in silent if "pooler" in n]  # mean pooling does not read BERT's pooler
    assert silent == (pooler if network == "bert_mean" else [])


@each_method
def test_the_seed_decides_the_start(lab: Any, method: str, network: str) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        params = {"bias_init": 0.01}
        return lab.build(network, method, seed=seed, params=params, task={"head": "new"}).ensemble.state()  # type: ignore[no-any-return]

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    changed = {n for n in first if not torch.equal(first[n], other[n])}
    zeros = ("heads.bias_MC", "B_MOR", "c_MKR", "c_SR", *(["delta_MR"] if method == "svfit" else []))  # B: LoRA's second; c: bands
    zeros += ("bias_MO",) if method == "sve_band" else ()  # shared
    assert changed == {n for n in first if not n.startswith("network.") and not n.endswith(zeros)}


@some_networks
def test_members_differ(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method, task={"head": "new"})
    logits_MNC = built.logits()
    for a in range(len(logits_MNC)):
        for b in range(a):
            assert np.abs(logits_MNC[a] - logits_MNC[b]).max() > 1e-4


@some_networks
def test_state_goes_round_and_nothing_is_made_up(lab: Any, method: str, network: str) -> None:
    trained = lab.build(network, method)
    state = trained.fit()
    fresh = lab.build(network, method, seed=9)
    assert np.abs(fresh.logits() - trained.logits()).max() > 1e-4
    fresh.ensemble.load_trained(state)
    assert np.array_equal(fresh.logits(), trained.logits())
    name = next(iter(state))
    short = {n: t for n, t in state.items() if n != name}
    for broken, said in (
        (short, name),
        ({**state, "more": state[name]}, "more"),
        ({**state, name: state[name][..., :-1]}, "shape"),
    ):
        with pytest.raises(CheckpointError, match=said.replace(".", r"\.")):
            fresh.ensemble.load_trained(broken)


@some_networks
@pytest.mark.parametrize("batches", ["independent", "shared"])
def test_batched_and_sequential_training_take_the_same_steps(lab: Any, method: str, network: str, batches: str) -> None:
    start = lab.build(network, method).ensemble.state()
    params = {"member_batches": batches, "dropout": "off"}
    both = [lab.build(network, method, params=params).fit(member_execution=e) for e in ("batched", "sequential")]
    for name, tensor in both[0].items():
        assert (tensor - both[1][name]).norm() <= 1e-4 * (tensor - start[name]).norm() + 1e-6 * tensor.norm()


@everywhere
def test_some_members_are_a_slice_of_all(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method)
    last = built.ensemble.n_members - 1
    for chosen in ([last], [last, 0] if last else [0]):
        assert np.array_equal(built.logits(chosen), built.logits()[chosen])
        torch.testing.assert_close(built.training_logits(chosen), built.training_logits()[chosen], atol=2e-5, rtol=0)


@some_networks
def test_one_member_is_legal(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method, members=1)
    before = built.logits()
    built.fit()
    assert built.logits().shape == before.shape == (1, 11, len(built.task.classes))
    assert np.abs(built.logits() - before).max() > 1e-3
    ids = [str(i) for i in range(11)]
    known = Predictions(built.logits(), built.test.labels_N, ids, built.task.classes, mask_NC=built.test.mask_NC)
    view = aggregate(known, "probs")
    assert np.abs(view.mutual_information_N).max() < 1e-12  # one member leaves nothing epistemic


@everywhere
def test_training_sees_what_evaluation_defines_and_plain_networks_answer(lab: Any, method: str, network: str) -> None:
    built = lab.build(network, method)
    built.fit()
    torch.testing.assert_close(built.training_logits(), torch.from_numpy(built.logits()), atol=2e-5, rtol=2e-5)
    inputs = built.test.batch(np.arange(len(built.test)))
    for m in range(built.ensemble.n_members):
        model = built.ensemble.member_model(m)
        with torch.no_grad():
            plain = built.backbone.logits(model, inputs)
        torch.testing.assert_close(plain, torch.from_numpy(built.logits()[m]), atol=2e-5, rtol=2e-5)


def moved(start: Any, one: Any, other: Any) -> tuple[float, float]:
    """How far apart two trained ensembles are, and how far the first went, in test logits."""
    before, first, second = start.logits(), one.logits(), other.logits()
    return float(np.abs(first - second).max()), float(np.abs(first - before).max())


@some_networks
def test_accumulated_steps_are_whole_steps(lab: Any, method: str, network: str) -> None:
    """In logits: attention is blind to key biases, whose gradient is rounding noise that Adam blows up."""
    one, four = (lab.build(network, method, params={"dropout": "off", "rate": 0.0}) for _ in range(2))
    one.fit(accumulation=1), four.fit(accumulation=4)
    apart, far = moved(lab.build(network, method), one, four)
    assert apart < 1e-3 * far


@some_networks
def test_a_member_takes_the_steps_it_would_take_alone(lab: Any, method: str, network: str) -> None:
    """Clipping is per member and so tight that it acts: a clip over all members would give other steps."""
    params = {"dropout": "off", "rate": 0.0}
    params |= {"shared_bands": 0, "biases": "member"} if method == "sve_band" else {}  # what is shared sees every member's batch
    alone, among = (lab.build(network, method, members=m, params=params) for m in (1, 3))
    before = alone.logits()
    if (shares := [r.epochs_share for r in among.ensemble.rounds()]) != [1.0] * len(shares):
        assert sum(shares) == pytest.approx(1.0)  # members that share the steps of one: alone, a member takes them all
        return
    alone.fit(clip=0.01), among.fit(clip=0.01)
    assert np.abs(alone.logits()[0] - among.logits()[0]).max() < 1e-3 * np.abs(alone.logits() - before).max()
