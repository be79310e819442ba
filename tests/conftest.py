"""Tiny real networks, saved as the folders their libraries open, and tiny data: no network, no downloads.

Shapes: M members, N samples, B batch, C classes.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sve_cli.backbone import Backbone, load_backbone
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.factors import FactorStore
from sve_cli.prediction import predict_logits
from sve_cli.recipe.spec import MethodSpec, ModelSpec, TaskSpec, TrainSpec
from sve_cli.registry import METHODS, TASKS
from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, Task
from sve_cli.training import Checkpointer, Trainer

CLASSES = ["red", "green", "blue"]
WORDS = [
    "the",
    "sky",
    "grass",
    "fire",
    "is",
    "was",
    "very",
    "not",
    "and",
    "so",
    *CLASSES,
    *"ABCDE",
    "Question",
    "Choices",
    "Answer",
]
WORDS += ["Choose", "one", ":", ".", "?", "What", "color", "yes", "no"]
MULTIPLE_CHOICE = "multiple_choice"


def randomise(network: nn.Module, seed: int) -> None:
    """Weights that no error hides behind: biases and norms away from 0 and 1, a head whose logits are of size 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.3 * noise.abs())
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.ndim < 2:
                tensor.copy_(0.2 * noise)
            else:
                tensor.copy_(noise * 1.2 / tensor[0].numel() ** 0.5 if "embed" not in name else 0.5 * noise)


def save_timm(folder: Path, architecture: str, arguments: dict[str, Any], side: int, seed: int) -> None:
    """A timm folder, written by hand."""
    network = timm.create_model(architecture, num_classes=len(CLASSES), **arguments)
    randomise(network, seed)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    cfg = network.pretrained_cfg
    pretrained = {
        "input_size": [3, side, side], "num_classes": len(CLASSES), "interpolation": "bicubic", "crop_pct": 0.9,
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "first_conv": cfg["first_conv"], "classifier": cfg["classifier"],
    }  # fmt: skip
    config = {"architecture": architecture, "num_classes": len(CLASSES), "label_names": CLASSES}
    document = {**config, "model_args": arguments, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's, with sentence pairs."""
    letters = "abcdefghijklmnopqrstuvwxyz?"
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *dict.fromkeys(w.lower() for w in WORDS),
        *letters,
        *(f"##{c}" for c in letters),
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


def word_level() -> PreTrainedTokenizerFast:
    """One token a word, capital letters among them, with a start token as LLaMA's."""
    vocabulary = ["<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's alphabet of bytes without merges: ' A' is two tokens, 'A' is one; no start token."""
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=160, eos_token="<|endoftext|>")


def save_bert(folder: Path, mean: bool) -> None:
    """A BERT classifier, or a BERT encoder with a head in the layout of sentence-transformers."""
    tokenizer = wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, id2label=dict(enumerate(CLASSES)), label2id={c: i for i, c in enumerate(CLASSES)},
    )  # fmt: skip
    network = BertModel(config) if mean else BertForSequenceClassification(config)
    randomise(network, 3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if mean:
        generator = torch.Generator().manual_seed(4)
        head = {"linear.weight": torch.randn(3, 32, generator=generator) / 4, "linear.bias": torch.randn(3, generator=generator)}
        (folder / "2_Dense").mkdir()
        save_file(head, folder / "2_Dense" / "model.safetensors")


def save_llama(folder: Path) -> None:
    """A LLaMA with grouped key-value heads and its own LM head."""
    tokenizer = word_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    randomise(network, 5)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_gpt2(folder: Path) -> None:
    """A GPT-2, whose linears are `Conv1D` and whose LM head is tied to its embeddings."""
    tokenizer = byte_level()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=160, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    network = GPT2LMHeadModel(config)
    randomise(network, 6)
    network.tie_weights()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def images(n: int, seed: int, side: int = 40) -> Samples:
    """Images whose dominant colour is their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = rng.integers(0, 120, (n, side, side, 3))
    pixels[np.arange(n), :, :, labels] += 120
    inputs = {"image": [p.astype(np.uint8) for p in pixels]}
    return Samples("toy", "train", inputs, labels, [str(i) for i in range(n)], CLASSES, modality="image")


def texts(n: int, seed: int, pairs: bool = False) -> Samples:
    """Texts of 2 to 14 words that name their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    filler = [" ".join(rng.choice(WORDS[:10], rng.integers(1, 13))) for _ in range(n)]
    inputs = {"text": [f"{f} {CLASSES[c]}" for f, c in zip(filler, labels, strict=True)]}
    if pairs:
        inputs["text_pair"] = filler[::-1]
    return Samples("toy", "train", inputs, labels, [str(i) for i in range(n)], CLASSES)


def questions(n: int, seed: int) -> Samples:
    """Items with 3 to 5 options."""
    rng = np.random.default_rng(seed)
    options = rng.integers(3, 6, n)
    asked = ["What color is " + " ".join(rng.choice(WORDS[:10], rng.integers(1, 6))) + " ?" for _ in range(n)]
    choices = [[str(c) for c in rng.permutation(["red", "green", "blue", "yes", "no"])[:k]] for k in options]
    labels = np.array([int(rng.integers(0, k)) for k in options])
    return Samples(
        "toy", "train", {"question": asked, "choices": choices}, labels, [str(i) for i in range(n)], [], modality="multiple_choice"
    )


@contextmanager
def full_disk(room: int = 1000) -> Iterator[None]:
    """Within: no file of this process grows beyond `room` bytes, and the error is one of the disk's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Quiet:
    """A log of the loop that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.steps: list[int] = []

    def step(self, done: int, total: int, text: str) -> None:
        self.steps.append(done)

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Built:
    """An ensemble with everything around it."""

    ensemble: Ensemble
    task: Task
    backbone: Backbone
    train: Encoded
    test: Encoded
    log: Quiet = field(default_factory=Quiet)

    def logits(self, members: list[int] | None = None) -> np.ndarray:
        """Test logits (M, N, C) of the members' definitions."""
        return predict_logits(self.ensemble, self.test, 5, members)[0]

    def training_logits(self, members: list[int] | None = None) -> Tensor:
        """Test logits (M, N, C) as training computes them."""
        self.ensemble.set_training(False)
        return self.ensemble(self.test.batch(np.arange(len(self.test))), members).logits_MBC.detach()

    def trainer(
        self,
        spec: TrainSpec,
        lr: float = 1e-2,
        seed: int = 0,
        checkpointer: Checkpointer | None = None,
        validate: Callable[..., np.ndarray] | None = None,
    ) -> Trainer:
        """The real loop; without `validate` there is no validation split."""
        validation = None if validate is None else self.test
        keep = checkpointer or Checkpointer(lambda tensors, meta: None)
        return Trainer(self.ensemble, self.train, validation, validate or (lambda m: np.zeros(0)), spec, lr, seed, self.log, keep)

    def fit(self, lr: float = 1e-2, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
        """Three steps of the real loop (unless told otherwise); the state after them."""
        plain = {"epochs": 1, "batch_size": 8, "precision": "float32", "warmup": 0.0, "schedule": "constant", "select": "last"}
        self.trainer(TrainSpec(**{**plain, **settings}), lr, seed).fit()
        return self.ensemble.state()


class Lab:
    """Builds ensembles of any registered method on any of the tiny networks."""

    networks = ("vit", "resnet", "bert", "bert_mean", "llama", "gpt2")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = FactorStore(root / "cache")
        save_timm(
            root / "vit",
            "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
            32,
            1,
        )
        save_timm(root / "resnet", "resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24], "stem_width": 8}, 32, 2)
        save_bert(root / "bert", mean=False)
        save_bert(root / "bert_mean", mean=True)
        save_llama(root / "llama")
        save_gpt2(root / "gpt2")

    def task_name(self, network: str) -> str:
        """The task of a network."""
        tasks = {"vit": "image_classification", "resnet": "image_classification", "llama": MULTIPLE_CHOICE, "gpt2": MULTIPLE_CHOICE}
        return tasks.get(network, "text_classification")

    def model(self, network: str, **settings: Any) -> ModelSpec:
        """The recipe's model section."""
        return ModelSpec(**{"name": str(self.root / network), "pooling": "mean" if network == "bert_mean" else "auto", **settings})

    def backbone(self, network: str, **settings: Any) -> Backbone:
        """The opened checkpoint."""
        return load_backbone(self.model(network, **settings), self.task_name(network))

    def samples(self, network: str, n: int, seed: int) -> Samples:
        """Data of the network's kind."""
        makers: dict[str, Any] = {"image_classification": images, "text_classification": texts, MULTIPLE_CHOICE: questions}
        return makers[self.task_name(network)](n, seed)  # type: ignore[no-any-return]

    def task(self, network: str, backbone: Backbone, classes: list[str] | None = None, **settings: Any) -> Task:
        """The task, on a short instruction."""
        name = self.task_name(network)
        spec = TaskSpec(**{"name": name, "instruction": "Choose one .", **settings})
        default = [] if name == MULTIPLE_CHOICE else CLASSES
        return TASKS.resolve(name)(spec, classes or default, backbone)  # type: ignore[no-any-return]

    def build(
        self,
        network: str,
        method: str = "sve",
        members: int = 3,
        seed: int = 0,
        params: dict[str, Any] | None = None,
        task: dict[str, Any] | None = None,
        n_train: int = 24,
        **spec: Any,
    ) -> Built:
        """An untrained ensemble. Methods that are one network get one member; methods of heads get heads that train."""
        backbone = self.backbone(network)
        settings = {"head": "checkpoint"} if self.task_name(network) == MULTIPLE_CHOICE else {}
        made = self.task(network, backbone, **{**settings, **(task or {})})
        entry = METHODS.resolve(method)
        known = {f.name for f in fields(entry.Params)}
        chosen = entry.Params(**{k: v for k, v in (params or {}).items() if k in known})
        words = {k: get_args(hint) for k, hint in get_type_hints(entry.Params).items() if get_origin(hint) is Literal}
        assert all(getattr(chosen, k) in allowed for k, allowed in words.items()), chosen  # as reading a recipe refuses
        wanted = MethodSpec(name=method, members=members, **spec)
        try:
            ensemble = entry.build(backbone, made, wanted, self.store, chosen, seed)
        except SveError as error:
            if "method.members" not in str(error):
                raise
            ensemble = entry.build(backbone, made, replace(wanted, members=1), self.store, chosen, seed)
        train, test = (made.encode(self.samples(network, n, k)) for n, k in ((n_train, 0), (11, 1)))
        return Built(ensemble, made, backbone, train, test)

    def quiet_start(self, method: str) -> dict[str, Any]:
        """Parameters under which every member starts as the checkpoint."""
        quiet = ("_init", "init_std", "rate")
        return {f.name: 0.0 for f in fields(METHODS.resolve(method).Params) if f.name.endswith(quiet) and type(f.default) is float}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The tiny networks, saved once."""
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are fastest on one thread, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
