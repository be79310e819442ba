"""What a checkpoint lacks: harmless around the encoder, told about in front of the head, refused inside of the encoder."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sve_cli.backbone import load_backbone
from sve_cli.backbone.missing import require_encoder
from sve_cli.errors import CheckpointError
from sve_cli.recipe import load_recipe_text
from sve_cli.recipe.spec import ModelSpec
from sve_cli.workflows.session import Silent, open_session
from sve_cli.workflows.train import lock_of
from tests.conftest import texts, wordpiece

TEXT, CHOICE = "text_classification", "multiple_choice"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": SIZES, "Roberta": SIZES, "Electra": {**SIZES, "embedding_size": 8}, "Deberta": SIZES,
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "DistilBert": {"dim": 16, "hidden_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}, "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "Llama": {**SIZES, "num_key_value_heads": 2},
}  # fmt: skip
MADE_UP = {  # by what the encoder alone was saved as; others have no layer in front of the head, or it is in the checkpoint
    "Roberta": "classifier.dense", "Electra": "classifier.dense", "Deberta": "pooler.dense", "DebertaV2": "pooler.dense",
    "DistilBert": "pre_classifier", "XLNet": "sequence_summary.summary",
}  # fmt: skip
AUTO = {
    "base": transformers.AutoModel, "masked": transformers.AutoModelForMaskedLM, "causal": transformers.AutoModelForCausalLM,
    "classifier": transformers.AutoModelForSequenceClassification,
}  # fmt: skip
NO_SUCH = {(k, "masked") for k in ("XLNet", "GPT2", "Llama")} | {(k, "causal") for k in ("Deberta", "DebertaV2", "DistilBert")}


def save(folder: Path, kind: str, saved_as: str) -> ModelSpec:
    config = getattr(transformers, f"{kind}Config")(vocab_size=99, **ENCODERS[kind])
    AUTO[saved_as].from_config(config).save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return ModelSpec(str(folder))


@pytest.mark.parametrize(("kind", "saved_as"), [(k, s) for k in ENCODERS for s in AUTO if (k, s) not in NO_SUCH])
def test_a_checkpoint_may_be_of_another_task(kind: str, saved_as: str, tmp_path: Path) -> None:
    spec = save(tmp_path / "net", kind, saved_as)
    notes = load_backbone(spec, TEXT).notes
    layer = {} if saved_as == "classifier" else {**MADE_UP, **({} if saved_as == "base" else {"Bert": "bert.pooler.dense"})}
    assert [layer[kind] in note and "model.pooling: cls or mean" in note for note in notes] == [True] * (kind in layer)
    assert load_backbone(ModelSpec(spec.name, pooling="mean"), TEXT).notes == []  # nothing in front of the head, no pooler
    if kind in ("Bert", "Roberta", "Electra", "XLNet", "GPT2", "Llama"):
        notes = load_backbone(spec, CHOICE).notes
        assert all("task.head: new" in note for note in notes)
        assert bool(notes) == (saved_as in ("base", "classifier") and kind != "GPT2")  # whose LM head is its embedding


@pytest.mark.parametrize(("network", "layer"), [("bert", "layer.1."), ("bert_mean", "layer.1."), ("llama", "layers.1.")])
def test_a_cut_checkpoint_is_refused(lab: Any, tmp_path: Path, network: str, layer: str) -> None:
    folder = Path(shutil.copytree(lab.root / network, tmp_path / "cut"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if layer not in name}
    lost = len(tensors) - len(kept)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks weights of its network: \S+, \S+, \S+ and {lost - 3} more\.") as caught:
        load_backbone(ModelSpec(str(folder), pooling="mean" if network == "bert_mean" else "auto"), lab.task_name(network))
    assert layer in caught.value.message
    again = ModelSpec(str(folder), random_init=True)
    assert load_backbone(again, lab.task_name(network)).notes == []  # which takes nothing from the file


def test_without_a_named_encoder_only_blocks_count() -> None:
    network = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2)]), "mix": torch.nn.Linear(2, 2)})
    require_encoder(network, ["mix.weight"], "net")
    with pytest.raises(CheckpointError, match=r"'net' lacks weights of its network: layers\.0\.weight\."):
        require_encoder(network, ["mix.weight", "layers.0.weight", "positions"], "net")


def test_a_run_notes_the_layer_that_was_made_up(tmp_path: Path) -> None:
    spec = save(tmp_path / "net", "DistilBert", "base")
    samples = texts(12, 0)
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            rows = zip(samples.inputs["text"], [samples.classes[i] for i in samples.labels_N], strict=True)
            csv.writer(file).writerows([("text", "label"), *((f"{text} {split}", label) for text, label in rows)])
    text = f"model: {{name: {spec.name}}}\ndata: {{name: {tmp_path}}}\ntask: {{name: {TEXT}}}\nmethod: {{name: heads_only}}\n"
    log = Silent()
    session = open_session(load_recipe_text(text, "test"), log)
    assert any(line.startswith("warning: The checkpoint has no weights for pre_classifier,") for line in log.lines)
    assert any("no weights for pre_classifier" in note for note in lock_of(session, None)["notes"])
