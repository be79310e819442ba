"""Exported folders: complete, loadable by the libraries' own calls, equal to the live members; anything else is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sve_cli.certify import Answer, Certificate, Questions, in_fresh_process, process, worker
from sve_cli.certify.staging import STAGING
from sve_cli.errors import CheckFailed, NotExportable, SveError
from sve_cli.export import Artifact, require_complete
from sve_cli.export import merged as merged_target

KINDS = ["bert", "bert_mean", "bert_pairs", "vit", "resnet", "llama"]
Make = Callable[..., Any]


def export(case: Any, *arguments: Any, **keys: Any) -> list[tuple[Artifact, Certificate]]:
    return case.export(*arguments, **keys)  # type: ignore[no-any-return]


def member_logits(case: Any, m: int) -> np.ndarray:
    with torch.inference_mode(), case.ensemble.merged(m):
        inputs = case.task.encode(case.samples).batch(np.arange(len(case.samples)))
        return np.asarray(case.ensemble(inputs, members=[m]).logits_MBC[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_is_certified(make: Make, tmp_path: Path, kind: str) -> None:
    case = make(kind)
    results = export(case, tmp_path / "out", ("merged", "averaged"), [2, 0])
    assert [a.path.name for a, _ in results] == ["member-2", "member-0", "averaged"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["averaged", "member-0", "member-2"]
    for artifact, certificate in results:
        assert certificate.gaps.max_logit_gap <= 1e-4 and certificate.gaps.agreement == 1.0
        assert certificate.gap_to_base > 1e-2 and not certificate.notes  # far from the untrained network, as built
        stored = json.loads((artifact.path / "certificate.json").read_text())
        assert stored == json.loads(json.dumps(certificate.to_json())) and stored["command"] == "sve export RUN"
        assert stored["files"].keys() >= {"config.json", "model.safetensors"}
        modes = {p.stat().st_mode for p in artifact.path.rglob("*") if p.is_file()}
        assert len(modes) == 1  # who reads the card reads the weights
        text = (artifact.path / "README.md").read_text()
        assert "not the ensemble" in text and "## Certificate" in text and str(tmp_path) not in text
    beside = results[2][1].versus_ensemble
    assert beside is not None and beside["averaged"]["nll"] != beside["ensemble"]["nll"]
    assert results[0][1].versus_ensemble is None


@pytest.mark.slow
@pytest.mark.parametrize("params", [{"train_norms": True}, {"biases": "frozen", "parametrisation": "absolute"}])
def test_members_with_other_parameters(make: Make, tmp_path: Path, params: dict[str, Any]) -> None:
    for _, certificate in export(make("bert_mean", params=params), tmp_path / "out", ("merged", "averaged")):
        assert certificate.gaps.max_logit_gap <= 1e-4 and certificate.gap_to_base > 1e-2


def test_sequence_classifier_loads_plainly(make: Make, tmp_path: Path) -> None:
    case = make("bert", max_length=9)
    export(case, tmp_path / "out", members=[1])
    folder = tmp_path / "out" / "member-1"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(case.samples.inputs["text"], truncation=True, padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 9  # the folder's own limit is the recipe's
    with torch.inference_mode():
        np.testing.assert_allclose(model(**inputs).logits.numpy(), member_logits(case, 1), atol=1e-4)
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "very positive"}


@pytest.mark.parametrize(
    ("kind", "keys"), [("vit", {}), ("vit", {"image_size": 64}), ("resnet", {"method": "single", "image_size": 64})]
)
def test_timm_folder_loads_plainly(make: Make, tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    case = make(kind, **keys)
    export(case, tmp_path / "out", members=[0])
    model = timm.create_model(f"local-dir:{tmp_path / 'out' / 'member-0'}", pretrained=True).eval()
    data_config = timm.data.resolve_model_data_config(model)
    side = keys.get("image_size", 32)
    assert tuple(data_config["input_size"]) == (3, side, side) and tuple(data_config["mean"]) == (0.3, 0.4, 0.5)
    transform = timm.data.create_transform(**data_config, is_training=False)
    pixels = torch.stack([transform(Image.open(io.BytesIO(b)).convert("RGB")) for b in case.samples.inputs["image"]])
    with torch.inference_mode():
        np.testing.assert_allclose(model(pixels).numpy(), member_logits(case, 0), atol=1e-4)
    assert list(model.pretrained_cfg["label_names"]) == case.samples.classes


@pytest.mark.slow
def test_mean_pooling_loads_in_sentence_transformers(make: Make, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed")
    case = make("bert_mean")
    export(case, tmp_path / "out", members=[0])
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out" / "member-0"), device="cpu")
    np.testing.assert_allclose(model.encode(case.samples.inputs["text"]), member_logits(case, 0), atol=1e-4)


@pytest.mark.parametrize("installed", [True, False])
def test_a_pooled_encoder_is_reloaded_by_the_library_its_card_names(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed")
    if not installed:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "sentence_transformers" else found(name, *a)
        )
    ((_, certificate),) = export(make("bert_mean"), tmp_path / "out", members=[0])
    assert ("sentence_transformers" in certificate.versions) == installed and certificate.gaps.max_logit_gap <= 1e-4


@pytest.mark.parametrize(("head", "tied"), [("auto", True), pytest.param("checkpoint", False, marks=pytest.mark.slow)])
def test_tied_embeddings_stay_tied_unless_heads_were_trained(make: Make, tmp_path: Path, head: str, tied: bool) -> None:
    case = make("llama", head=head)
    export(case, tmp_path / "out", ("averaged",))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "averaged")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "averaged" / "model.safetensors")) != tied


def test_a_member_without_its_own_network_says_so(make: Make, tmp_path: Path) -> None:
    for _, certificate in export(make("bert", method="heads_only"), tmp_path / "out", ("merged", "averaged")):
        assert certificate.gap_to_base < 1e-4 and "untrained checkpoint" in certificate.notes[0]


# Mutations: exporters that write something else than what was evaluated.


def base_weights(case: Any, patch: pytest.MonkeyPatch) -> None:
    def member_model(m: int) -> nn.Module:
        return case.ensemble.backbone.with_head(case.ensemble.backbone.fresh(), case.ensemble.heads.head(m, case.ensemble.classes))

    patch.setattr(case.ensemble, "member_model", member_model)


def swapped_members(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = case.ensemble.member_model
    patch.setattr(case.ensemble, "member_model", lambda m: original([1, 0, 2][m]))


def swapped_heads(case: Any, patch: pytest.MonkeyPatch) -> None:
    original = case.ensemble.heads.head
    patch.setattr(case.ensemble.heads, "head", lambda m, classes: original([1, 0, 2][m], classes))


def after_saving(change: Callable[[Path], None]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def mutate(case: Any, patch: pytest.MonkeyPatch) -> None:
        original = case.ensemble.backbone.save

        def save(model: nn.Module, folder: Path, *rest: Any) -> None:
            original(model, folder, *rest)
            change(folder)

        patch.setattr(case.ensemble.backbone, "save", save)

    return mutate


def edit_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        edit(document)
        (folder / name).write_text(json.dumps(document))

    return after_saving(change)


def drop_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if k.split(".")[0] not in ("classifier", "head")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 0x40  # an exponent bit of the last weight
    (folder / "model.safetensors").write_bytes(data)


def remove(name: str) -> Callable[[Any, pytest.MonkeyPatch], None]:
    return after_saving(lambda folder: (folder / name).unlink())


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


MUTATIONS = [
    ("bert", base_weights, "untrained checkpoint with the head of member 0"),
    ("bert_mean", base_weights, "untrained checkpoint with the head of member 0"),
    ("vit", base_weights, "untrained checkpoint with the head of member 0"),
    ("llama", base_weights, "untrained checkpoint with"),
    ("bert", swapped_members, "It is member 1"),
    ("vit", swapped_members, "It is member 1"),
    ("llama", swapped_members, "It is member 1"),
    ("resnet", swapped_heads, "does not compute what was evaluated"),
    ("bert", after_saving(drop_head), "classifier.bias"),
    ("vit", after_saving(drop_head), "does not open"),
    ("bert_mean", remove("2_Dense/model.safetensors"), "lacks 2_Dense/model.safetensors"),
    ("bert_mean", edit_json("1_Pooling/config.json", lambda d: d.update(pooling_mode_cls_token=True)), "does not (compute|open)"),
    ("bert", remove("tokenizer.json"), "lacks a tokenizer"),
    ("bert", edit_json("config.json", lambda d: d["id2label"].update({"0": "neutral", "1": "negative"})), "class 0 is 'neutral'"),
    ("vit", edit_json("config.json", lambda d: d["label_names"].reverse()), "class 0 is 'very positive', not 'negative'"),
    ("vit", edit_json("config.json", lambda d: d["label_names"].pop()), "it names 2, not 3"),
    ("vit", edit_json("config.json", lambda d: d.pop("label_names")), "lacks label_names"),
    ("vit", edit_json("config.json", lambda d: d["pretrained_cfg"].pop("mean")), "lacks pretrained_cfg.mean"),
    ("vit", edit_json("config.json", lambda d: d["pretrained_cfg"].update(crop_pct=1.0)), "does not compute what was evaluated"),
    ("bert", after_saving(flip_byte), "does not compute|not finite"),
    ("resnet", after_saving(truncate), "does not open"),
    ("bert", after_saving(lambda folder: (folder / "extra.bin").write_bytes(b"")), "pickled file, 'extra.bin'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mutate", "message"), MUTATIONS, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(MUTATIONS)])
def test_a_wrong_export_is_refused_and_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mutate: Any, message: str
) -> None:
    case = make(kind)
    mutate(case, monkeypatch)
    with pytest.raises(CheckFailed, match=message) as caught:
        export(case, tmp_path / "out", members=[0])
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())  # neither the folder nor what was staged


@pytest.mark.parametrize("wrong", ["member", "base", "no head"])
def test_a_wrong_average_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    case = make("bert")
    base, ensemble = case.ensemble.backbone, case.ensemble
    models = {"member": lambda: ensemble.member_model(2), "base": lambda: base.with_head(base.fresh(), ensemble.averaged_head())}
    if wrong in models:
        monkeypatch.setattr(ensemble, "averaged_model", models[wrong])
    else:
        after_saving(drop_head)(case, monkeypatch)
    saying = {"member": "It is member 2", "base": "with the mean head", "no head": "classifier.bias"}[wrong]
    with pytest.raises(CheckFailed, match=saying):
        export(case, tmp_path / "out", ("averaged",))
    assert not list(tmp_path.iterdir())


def test_certify_judges_an_existing_folder_and_leaves_it(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    (artifact, _), *_ = export(case, tmp_path / "out", members=[1])
    again = case.certify(artifact, n=5)
    assert again.gaps.n == 5 and again.command == "again"
    other = Artifact("merged", artifact.path, 2, artifact.loads_with)
    with pytest.raises(CheckFailed, match="It is member 1"):
        case.certify(other)
    assert artifact.path.is_dir()


# Places


def test_places_that_are_refused(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    (tmp_path / "full" / "member-0").mkdir(parents=True)
    (tmp_path / "full" / "member-0" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("")
    other = shutil.copytree(case.source, tmp_path / "other")
    before = sorted(p.name for p in case.source.iterdir())
    for out, message in [
        (case.source, "is the source checkpoint"),
        (case.source / "exports", "is the source checkpoint"),
        (tmp_path / "full", "exists and is not empty"),
        (other, "is a checkpoint itself"),
        (tmp_path / "file", "is a file"),
    ]:
        with pytest.raises(SveError, match=message) as caught:
            export(case, out)
        assert caught.value.exit_code == 2
    assert sorted(p.name for p in case.source.iterdir()) == before
    assert [p.name for p in (tmp_path / "full").rglob("*")] == ["member-0", "mine.txt"]
    export(case, tmp_path / "full", members=[1])  # what is not in the way stays
    assert (tmp_path / "full" / "member-0" / "mine.txt").read_text() == "keep"


def test_the_place_that_is_looked_at_is_written_to(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde that the shell has left is a name like any other, for both."""
    (taken := tmp_path / "home" / "out" / "member-1").mkdir(parents=True)
    (taken / "mine.txt").write_text("keep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    ((artifact, _),) = export(make("bert"), Path("~/out"), members=[1])
    assert artifact.path == Path("~/out/member-1") and (tmp_path / "~" / "out" / "member-1" / "config.json").is_file()
    with pytest.raises(SveError, match="'~/out/member-1' exists and is not empty"):
        export(make("bert"), Path("~/out"), members=[1])
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]


def test_unknown_members_and_targets_are_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("bert")
    with pytest.raises(SveError, match="no member 3; this ensemble has the members 0 to 2"):
        export(case, tmp_path / "out", members=[0, 3])
    with pytest.raises(SveError, match="No member is chosen"):
        export(case, tmp_path / "out", members=[])
    with pytest.raises(SveError, match="Did you mean 'merged'"):
        export(case, tmp_path / "out", ["mergd"])

    def refuse() -> nn.Module:
        raise NotExportable("no")

    monkeypatch.setattr(case.ensemble, "averaged_model", refuse)
    with pytest.raises(NotExportable):
        export(case, tmp_path / "out", ["merged", "averaged"])
    assert not list(tmp_path.iterdir())


def test_nothing_has_its_final_name_before_it_is_certified(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    dead = subprocess.Popen(["true"])
    dead.wait()
    leftover = tmp_path / "out" / f"{STAGING}{dead.pid}"
    (leftover / "member-0").mkdir(parents=True)
    alive = tmp_path / "out" / f"{STAGING}{os.getppid()}"
    alive.mkdir()
    seen: list[list[str]] = []

    def interrupted(artifacts: Sequence[Artifact], asked: Questions) -> list[Answer]:
        seen.append(sorted(p.name for p in (tmp_path / "out").iterdir()))  # what a kill at this moment would leave
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(case, tmp_path / "out", reload=interrupted)
    assert seen == [sorted([f"{STAGING}{os.getpid()}", alive.name])]  # leftovers of the dead are gone, others' work is not
    assert [p.name for p in (tmp_path / "out").iterdir()] == [alive.name]


def test_a_full_disk_is_a_sentence(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merged_target, "write_checkpoint", full)
    with pytest.raises(SveError, match="No space left on device") as caught:
        export(make("bert"), tmp_path / "out")
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_completeness_of_a_text_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"lacks config\.json"):
        require_complete(tmp_path, text=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckFailed, match=r"lacks weights \(\.safetensors\), a tokenizer, tokenizer_config\.json"):
        require_complete(tmp_path, text=True)


# The fresh process itself


@pytest.mark.slow
def test_fresh_process(make: Make, tmp_path: Path) -> None:
    results = export(make("bert"), tmp_path / "out", ("merged", "averaged"), [0, 2], reload=in_fresh_process)
    assert len(results) == 3 and all(c.gaps.max_logit_gap <= 1e-4 and c.versions["transformers"] for _, c in results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert_mean", "bert_pairs", "vit", "resnet", "llama"])
def test_fresh_process_of_every_kind(make: Make, tmp_path: Path, kind: str) -> None:
    assert len(export(make(kind), tmp_path / "out", ("merged", "averaged"), reload=in_fresh_process)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "llama"])
def test_the_code_of_the_card_runs(make: Make, tmp_path: Path, kind: str) -> None:
    case = make(kind)
    export(case, tmp_path / "out", members=[0])
    folder = tmp_path / "out" / "member-0"
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    if kind == "vit":
        Image.open(io.BytesIO(case.samples.inputs["image"][0])).save(tmp_path / "image.png")
    if kind == "llama":
        code = f"prompt = 'Is it?'\n{code}\nprint(len(logits) == {len(case.ensemble.backbone.transform)})"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (["True"] if kind == "llama" else case.samples.classes)


@pytest.mark.slow
def test_fresh_process_refuses_what_does_not_open(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("vit")
    after_saving(drop_head)(case, monkeypatch)
    with pytest.raises(CheckFailed, match="'member-0' does not open in a fresh process: .*head"):
        export(case, tmp_path / "out", reload=in_fresh_process)
    assert not list(tmp_path.iterdir())


def test_what_a_dead_worker_means(tmp_path: Path) -> None:
    def died(code: int, stderr: str) -> Any:
        return subprocess.CompletedProcess([], code, "", stderr)

    answer = tmp_path / "0.safetensors"
    with pytest.raises(CheckFailed, match="does not open in a fresh process: OSError: no weights"):
        process._read(answer, Path("member-0"), died(1, "Traceback\nOSError: no weights\n\n"))
    with pytest.raises(SveError, match="killed") as caught:  # out of memory is not the artifact's fault
        process._read(answer, Path("member-0"), died(-9, ""))
    assert not isinstance(caught.value, CheckFailed)
    with pytest.raises(SveError, match=r"cannot write its answer to .*\(No space left") as caught:  # nor is a full disk
        process._read(answer, Path("member-0"), died(worker.CANNOT_WRITE, "No space left on device\n"))
    assert not isinstance(caught.value, CheckFailed)
    found = {"classes": ["a"], "missing": [], "versions": {}}
    save_file({"logits": torch.zeros(1, 1)}, answer, {"found": json.dumps(found)})
    assert process._read(answer, Path("member-0"), died(0, "")).outputs["logits"].shape == (1, 1)


# Weights written one at a time


@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "resnet", "llama"])
def test_streamed_weights_are_those_of_the_whole_network(make: Make, tmp_path: Path, kind: str) -> None:
    case = make(kind)
    backbone = case.ensemble.backbone
    export(case, tmp_path / "out", members=[1])
    whole = case.ensemble.member_model(1)
    model = whole["encoder"] if kind == "bert_mean" else whole
    if kind in ("vit", "resnet"):
        expected = model.state_dict()
    else:
        model.save_pretrained(tmp_path / "library")  # the library's own writer says which names and which tied tensors
        expected = load_file(tmp_path / "library" / "model.safetensors")
    found = load_file(tmp_path / "out" / "member-1" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(p.is_meta for p in backbone.network.parameters()) and case.ensemble.late is None


@pytest.mark.parametrize(("size", "files"), [(20_000, 5), (10**9, 1)])
def test_shards_smaller_and_larger_than_the_model(make: Make, tmp_path: Path, size: int, files: int) -> None:
    case = make("bert")
    ((artifact, certificate),) = export(case, tmp_path / "out", members=[0], shard_size=size)
    written = sorted(p.name for p in artifact.path.glob("*.safetensors"))
    assert len(written) >= files and (artifact.path / "model.safetensors.index.json").is_file() == (files > 1)
    assert certificate.gaps.max_logit_gap <= 1e-4
    if files > 1:
        sizes = [p.stat().st_size for p in artifact.path.glob("*.safetensors")]
        assert sorted(sizes)[0] < size and written[0] == f"model-00001-of-{len(written):05d}.safetensors"


def test_one_layer_is_in_memory_at_a_time(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged matrices that are alive at once, counted when each is made."""
    case = make("vit")
    alive: list[StorageWeakRef] = []
    most = 0
    kind = type(next(case.ensemble.member_linears()))
    original = kind.merged

    def merged(self: Any, member: int) -> Any:
        nonlocal most
        made = original(self, member)
        alive.append(StorageWeakRef(made[0].untyped_storage()))
        most = max(most, sum(not r.expired() for r in alive))
        return made

    monkeypatch.setattr(kind, "merged", merged)
    source = case.source_of([0])
    merged_target.export_merged(source, tmp_path / "streamed")
    streamed, most = most, 0
    whole = case.ensemble.member_model(0)  # the old way: every layer of a second network
    assert streamed <= 2 < most and whole is not None
