"""Networks whose layers do not get one block of rows a member: the members run one after another, and are what they should be.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from sve_cli.backbone import load_backbone
from sve_cli.ensemble import Ensemble, MixedMembers
from sve_cli.errors import CheckpointError, SveError
from sve_cli.posthoc.state import Posthoc
from sve_cli.prediction import predict_logits
from sve_cli.recipe.spec import DataSpec, MethodSpec, ModelSpec, Recipe, TaskSpec, TrainSpec
from sve_cli.samples import DataSet
from sve_cli.tasks.common import TokenisedText
from sve_cli.training import Checkpointer
from sve_cli.training.execution import _two_rows, mixing_layer, path_gap, runnable
from sve_cli.workflows import serving
from sve_cli.workflows.session import Session, Silent
from tests.conftest import CLASSES, Built, Lab, images, questions, randomise, save_timm, texts, wordpiece

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 64}
CONFIGS: dict[str, Any] = {
    "deberta-v2": transformers.DebertaV2Config(**WIDTHS, **RELATIVE, share_att_key=True),
    "deberta": transformers.DebertaConfig(**WIDTHS, **RELATIVE),
    "longformer": transformers.LongformerConfig(**WIDTHS, attention_window=8, max_position_embeddings=80),
    "xlnet": transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48),
    "distilbert": transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}
MIXING = ["deberta-v2", "deberta", "longformer", "xlnet", "swinv2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks as local checkpoints."""
    root = tmp_path_factory.mktemp("execution")
    tokenizer = wordpiece()
    for seed, (name, config) in enumerate(CONFIGS.items()):
        config.vocab_size, config.pad_token_id = len(tokenizer), 0
        config.id2label, config.label2id = dict(enumerate(CLASSES)), {c: i for i, c in enumerate(CLASSES)}
        network = transformers.AutoModelForSequenceClassification.from_config(config)
        randomise(network, seed)
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    small = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    save_timm(root / "swinv2", "swinv2_tiny_window8_256", small, 32, 5)
    return root


def built(lab: Lab, folders: Path, network: str, method: str = "sve", members: int = 2, **spec: Any) -> Built:
    """An ensemble on one of the networks above, its members apart from each other."""
    task = "image_classification" if network == "swinv2" else "text_classification"

    class Other(Lab):
        def __init__(self) -> None:
            self.root, self.store = folders, lab.store

        def task_name(self, network: str) -> str:
            return task

        def backbone(self, network: str, **settings: Any) -> Any:
            return load_backbone(ModelSpec(name=str(folders / network)), task)

    made = Other().build(network, method, members, **spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.ensemble.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def mixing(made: Built) -> str:
    return mixing_layer(made.ensemble, made.train, torch.device("cpu"))


@pytest.mark.parametrize("method", ["sve", "lora_ensemble", "batch_ensemble"])
@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("network", MIXING)
def test_networks_that_mix_members_are_known(lab: Lab, folders: Path, network: str, members: int, method: str) -> None:
    made = built(lab, folders, network, method, members)
    layer = mixing(made)
    assert layer in {linear.view.name for linear in made.ensemble.member_linears()}
    spec = runnable(TrainSpec(), made.ensemble, made.train, torch.device("cpu"), made.log.warn)
    assert spec.member_execution == "sequential" and f"'{layer}'" in made.log.warnings[0]
    rows = made.test.batch(np.arange(len(made.test)))
    with torch.no_grad():
        for m, logits_NC in enumerate(predict_logits(made.ensemble, made.test, len(made.test))[0]):
            np.testing.assert_allclose(made.ensemble(rows, [m]).logits_MBC[0].numpy(), logits_NC, atol=2e-4)


@pytest.mark.parametrize("network", ["vit", "resnet", "bert", "llama", "gpt2", "distilbert"])
def test_networks_that_keep_members_apart_run_them_together(lab: Lab, folders: Path, network: str) -> None:
    norms = {"train_norms": network != "resnet"}
    made = built(lab, folders, network) if network == "distilbert" else lab.build(network, params=norms)
    assert mixing(made) == ""
    np.testing.assert_allclose(made.training_logits().numpy(), made.logits(), atol=2e-4)


def test_the_gap_is_that_of_the_path_training_takes(lab: Lab, folders: Path) -> None:
    cpu = torch.device("cpu")
    for made in (lab.build("bert"), built(lab, folders, "deberta-v2", members=3)):
        fine = path_gap(TrainSpec(precision="float32"), made.ensemble, made.test, cpu)
        coarse = path_gap(TrainSpec(precision="bfloat16"), made.ensemble, made.test, cpu)
        assert fine < 2e-4 and coarse > 20 * fine, (fine, coarse)


@pytest.mark.parametrize("network", ["deberta-v2", "longformer", "xlnet"])
def test_the_gap_of_members_that_are_never_computed_together(lab: Lab, folders: Path, network: str) -> None:
    """One network trains and thinned versions of it predict: no pass of mc_dropout has the rows of two members."""
    made = built(lab, folders, network, "mc_dropout", 3)
    assert path_gap(TrainSpec(precision="float32"), made.ensemble, made.test, torch.device("cpu")) < 1e-5


def test_training_is_that_of_one_member_after_another(lab: Lab, folders: Path) -> None:
    states = []
    for execution in ("batched", "sequential"):
        made = built(lab, folders, "deberta-v2", members=4)
        states.append(made.fit(member_execution=execution))
        assert len(made.log.warnings) == (execution == "batched"), made.log.warnings
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_without_the_layer_that_mixes_them_members_run_together(lab: Lab, folders: Path) -> None:
    made = built(lab, folders, "swinv2", exclude=["re:cpb_mlp"])
    assert mixing(made) == ""
    np.testing.assert_allclose(made.training_logits().numpy(), made.logits(), atol=2e-4)


class Leaking(nn.Module):
    """Adds a hundredth of the batch's first row to all rows: what members compute depends on each other."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(x + 0.01 * x[:1]))


def test_a_resumed_run_goes_on_as_it_began(lab: Lab, folders: Path) -> None:
    saved: list[Any] = []
    keep = Checkpointer(lambda tensors, meta: saved.append(({k: v.clone() for k, v in tensors.items()}, dict(meta))))
    spec = TrainSpec(epochs=2, batch_size=8, precision="float32")
    whole = built(lab, folders, "deberta-v2", members=3)
    whole.trainer(spec, checkpointer=keep).fit()
    assert [meta["member_execution"] for _, meta in saved] == ["sequential"] * 2
    resumed = built(lab, folders, "deberta-v2", members=3)
    resumed.trainer(spec, checkpointer=Checkpointer(lambda tensors, meta: None, saved[0])).fit()
    assert all(torch.equal(t, resumed.ensemble.state()[n]) for n, t in whole.ensemble.state().items())


def test_both_passes_that_are_compared_are_padded() -> None:
    for ids in ([[2, 3, 4], [2]], [[2], [2, 3, 4]]):
        pair = _two_rows(TokenisedText(ids, np.zeros(2, np.int64), 0))
        assert pair is not None and pair["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


class Scrambled(nn.Module):
    """Rows in another order, as in a network that folds the positions before the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.transpose(0, 1).flatten(0, 1))
        return torch.as_tensor(y.unflatten(0, (x.shape[1], x.shape[0])).transpose(0, 1))


@pytest.mark.parametrize("wrapper", [Leaking, Scrambled])
def test_rows_that_are_mixed_a_little_or_in_another_order_are_found(lab: Lab, wrapper: type[nn.Module]) -> None:
    made = lab.build("vit", targets=["fc1", "fc2"])
    block = made.ensemble.network.get_submodule("blocks.1.mlp")
    block.fc2 = wrapper(block.fc2)
    assert mixing(made) == "blocks.1.mlp.fc2"


def test_one_row_of_all_members_is_a_sentence(lab: Lab, folders: Path) -> None:
    ensemble: Ensemble = built(lab, folders, "swinv2").ensemble
    with pytest.raises(MixedMembers, match="cpb_mlp.*are not those of the batch. Set train.member_execution: sequential"):
        ensemble({"image": torch.zeros(2, 3, 32, 32)})


def test_one_row_or_equal_rows_say_nothing(lab: Lab) -> None:
    made = lab.build("bert")
    for ids in ([[2, 3]], [[2, 3], [2, 3]]):
        made.train = TokenisedText(ids, np.zeros(len(ids), np.int64), 0)
        assert mixing(made) == ""


def served(made: Built) -> serving.LoadedEnsemble:
    """An ensemble as `sve_cli.load` gives it, without a run."""
    task: Any = made.task
    spec = TaskSpec(name=task.spec.name)
    recipe = Recipe(model=made.backbone.spec, data=DataSpec(name="inputs"), task=spec, method=MethodSpec(name="sve"))
    session = Session(recipe, made.backbone, DataSet(None, None, None, []), task, Silent())
    session.device = torch.device("cpu")
    return serving.LoadedEnsemble(session, made.ensemble, Posthoc(), "probs", None, "digest", "Evaluate it.")


def asked(made: Built) -> list[Any]:
    """Inputs for `predict`; the first is short enough that all members in one pass are the cheaper way for texts."""
    found = {"image": images, "text": texts, "multiple_choice": questions}[made.task.modality](6, 5).inputs
    if made.task.modality == "multiple_choice":
        return [{"question": q, "choices": c} for q, c in zip(found["question"], found["choices"], strict=True)]
    return list(found.get("image", found.get("text")))


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("network", MIXING)
def test_predictions_are_the_members_own_where_the_network_mixes_them(
    lab: Lab, folders: Path, network: str, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(lab, folders, network, members=members)
    model, inputs = served(made), asked(made)
    monkeypatch.setattr(model, "_batching_is_cheaper", lambda encoded: True)
    for some in (inputs[:1], inputs, [inputs[0]] * 2):
        np.testing.assert_array_equal(model.logits(some), model.logits(some, execution="merged"))
    with pytest.raises(SveError, match=r"^Layer '.*execution=\"batched\" would answer wrongly. Use \"auto\" or \"merged\"\.$"):
        model.logits(inputs[:1], execution="batched")


@pytest.mark.parametrize("network", ["vit", "bert", "gpt2"])
def test_predictions_in_one_pass_where_the_network_keeps_members_apart(
    lab: Lab, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lab.build(network)
    model, inputs = served(made), asked(made)
    monkeypatch.setattr(model, "_batching_is_cheaper", lambda encoded: True)
    merged = model.logits(inputs, execution="merged")
    np.testing.assert_allclose(model.logits(inputs, execution="batched"), merged, atol=2e-4)
    monkeypatch.setattr(serving, "mixing_layer", lambda *given: pytest.fail("it is found out once"))
    monkeypatch.setattr(model._session, "outputs", lambda *given: pytest.fail("all members compute in one pass"))
    np.testing.assert_allclose(model.logits(inputs), merged, atol=2e-4)


def test_where_there_is_nothing_to_merge_no_pass_has_several_members(lab: Lab, folders: Path) -> None:
    """The thinned networks of mc_dropout have no layers of their own, and mix their rows on such a network as any other."""
    made = built(lab, folders, "xlnet", "mc_dropout", 3)
    model, inputs = served(made), asked(made)
    for execution in ("auto", "batched"):
        np.testing.assert_array_equal(model.logits(inputs, execution=execution), model.logits(inputs, execution="merged"))


@pytest.mark.parametrize("method", ["sve", "mc_dropout"])
def test_layers_whose_weights_are_read_are_refused_and_without_them_members_are_what_is_exported(
    lab: Lab, folders: Path, method: str
) -> None:
    """Swin v2 computes with `qkv.weight` and never calls `qkv`."""
    with pytest.raises(CheckpointError, match=r"never calls its layer 'layers\.0\.blocks\.0\.attn\.qkv' \(2 such\)"):
        built(lab, folders, "swinv2", method, exclude=["re:cpb_mlp"]).fit()
    made = built(lab, folders, "swinv2", method, exclude=["re:cpb_mlp|qkv"])
    made.fit()
    inputs, live = made.test.batch(np.arange(11)), made.logits()
    for m in range(2):
        with torch.no_grad():
            plain = made.backbone.logits(made.ensemble.member_model(m), inputs)
        np.testing.assert_allclose(plain.numpy(), live[m], atol=2e-5)
