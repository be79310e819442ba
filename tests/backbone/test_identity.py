"""A checkpoint is the same while its weights, its configuration and its tokenizer or image transform are, wherever it lies."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from sve_cli.backbone import Backbone, identity, load_backbone, require_same
from sve_cli.backbone.identity import CONFIG_FACTS, differences
from sve_cli.errors import CheckpointError, SveError
from sve_cli.recipe import load_recipe
from sve_cli.recipe.spec import ModelSpec
from sve_cli.rundir import RunDir, write_json
from sve_cli.workflows.session import Silent, open_session
from sve_cli.workflows.train import lock_of, train
from tests.conftest import texts

Edit = Callable[[dict[str, Any]], Any]


def edited(folder: Path, file: str, edit: Edit) -> None:
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    edit(document)
    (folder / file).write_text(json.dumps(document), encoding="utf-8")


def swap(document: dict[str, Any]) -> None:
    words = document["model"]["vocab"]
    words["red"], words["green"] = words["green"], words["red"]


def opened(folder: Path) -> Backbone:
    timm = "architecture" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return load_backbone(ModelSpec(str(folder)), "image_classification" if timm else "text_classification")


CHANGES: list[tuple[str, str, Edit, str]] = [
    ("bert", "config.json", lambda c: c.update(num_attention_heads=4), "configuration.*num_attention_heads is 4, was 2"),
    ("bert", "config.json", lambda c: c.update(hidden_act="relu"), 'configuration.*hidden_act is "relu", was "gelu"'),
    ("bert", "tokenizer.json", swap, "tokenizer.*vocabulary is another"),
    ("bert", "tokenizer.json", lambda c: c["normalizer"].update(lowercase=False), "tokenizer.*splitting is another"),
    ("bert", "tokenizer_config.json", lambda c: c.update(model_max_length=32), "tokenizer.*limit is 32, was 64"),
    ("vit", "config.json", lambda c: c["model_args"].update(num_heads=4), r"configuration.*num_heads is \[4, 4\], was \[3, 3\]"),
    ("vit", "config.json", lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "image transform.*mean is"),
]


@pytest.mark.parametrize(("network", "file", "edit", "message"), CHANGES)
def test_what_changes_numbers_is_refused(lab: Any, tmp_path: Path, network: str, file: str, edit: Edit, message: str) -> None:
    stored = json.loads(json.dumps(identity(lab.backbone(network))))
    folder = Path(shutil.copytree(lab.root / network, tmp_path / "copy"))
    require_same(opened(folder), stored, "this run")
    require_same(opened(folder), {}, "this run")  # of an older version
    edited(folder, file, edit)
    with pytest.raises(CheckpointError, match=f"^The {message}"):
        require_same(opened(folder), stored, "this run")


def test_labels_versions_and_what_other_versions_know_are_no_change(lab: Any, tmp_path: Path) -> None:
    stored = identity(lab.backbone("bert"))
    folder = Path(shutil.copytree(lab.root / "bert", tmp_path / "copy"))
    new = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "transformers_version": "4.1.0"}
    edited(folder, "config.json", lambda c: c.update(**new, dtype="float16", _name_or_path="elsewhere", never_heard_of=3))
    assert not differences(stored, identity(opened(folder)))
    stored[CONFIG_FACTS]["of_a_later_version"] = True
    assert not differences(stored, identity(opened(folder)))


@pytest.mark.parametrize("network", ["bert", "llama", "gpt2"])
def test_a_copy_that_the_library_saved_is_the_same(lab: Any, tmp_path: Path, network: str) -> None:
    source, task = lab.root / network, lab.task_name(network)
    few = Path(shutil.copytree(source, tmp_path / "few"))  # as older files of the hub: only what is no default
    kept = transformers.AutoConfig.from_pretrained(source).to_diff_dict()
    (few / "config.json").write_text(json.dumps({**kept, "torch_dtype": "float16"}), encoding="utf-8")
    classes = (transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification)
    classes[task == "text_classification"].from_pretrained(few).save_pretrained(tmp_path / "anew")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "anew")
    found = [identity(load_backbone(ModelSpec(str(place)), task)) for place in (source, few, tmp_path / "anew")]
    assert found[0] == found[1] == found[2]


def test_the_recipes_own_settings_are_no_change(lab: Any) -> None:
    plain = identity(lab.backbone("resnet"))
    assert identity(lab.backbone("resnet", image_size=64)) == plain
    assert identity(lab.backbone("bert", max_length=8)) == identity(lab.backbone("bert"))


def test_nested_fields_are_named() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 3, "e": 2}, "d": 1}) == [
        "a.b is 3, was 1",
        "d is 1, was null",
    ]


def test_a_run_is_neither_loaded_nor_resumed_with_another_configuration(lab: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lab.root / "bert", tmp_path / "net"))
    samples = texts(12, 0)
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            rows = zip(samples.inputs["text"], [samples.classes[i] for i in samples.labels_N], strict=True)
            csv.writer(file).writerows([("text", "label"), *((f"{text} {split}", label) for text, label in rows)])
    recipe = tmp_path / "recipe.yaml"
    text = f"model: {{name: {folder}}}\ndata: {{name: {tmp_path}}}\ntask: {{name: text_classification}}\n"
    recipe.write_text(text + "method: {name: heads_only}\n", encoding="utf-8")
    loaded, run = load_recipe(str(recipe)), RunDir(tmp_path)
    write_json(tmp_path / "recipe.lock.json", lock_of(open_session(loaded.recipe, Silent()), None))
    with pytest.raises(SveError, match=r"Cannot read|does not fit|no such file"):
        open_session(loaded.recipe, Silent()).load_run(run)  # nothing was trained: what is asked of the checkpoint passes
    edited(folder, "config.json", lambda c: c.update(hidden_act="relu"))
    with pytest.raises(CheckpointError, match='not what this run was trained with: hidden_act is "relu"'):
        open_session(loaded.recipe, Silent()).load_run(run)
    with pytest.raises(CheckpointError, match='not what this run was trained with: hidden_act is "relu"'):
        train(loaded, Silent(), resume=run)
