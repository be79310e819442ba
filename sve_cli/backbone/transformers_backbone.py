"""transformers networks as classifiers: the library's own sequence classifier, or an encoder with explicit pooling.

Shapes: B batch, T tokens, C classes, F features.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sve_cli.backbone.base import Backbone, Head, Inputs, replace_module
from sve_cli.backbone.files import shards
from sve_cli.backbone.identity import deciding, tokenizer_facts
from sve_cli.backbone.missing import made_up_layers, require_encoder
from sve_cli.backbone.resolve import Location
from sve_cli.backbone.weights import Writing, save_transformers
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import ModelSpec

POOLED = ("cls", "mean", "last")  # what `model.pooling` may be where the encoder is opened without the library's classifier


class TransformersBackbone(Backbone):
    """What the transformers backbones share: tokenizer, folder writing."""

    library = "transformers"
    modality = "text"
    absent: frozenset[str] = frozenset()  # weights that the checkpoint lacks, and that were made up when it was opened

    def __init__(self, network: nn.Module, spec: ModelSpec, head: Head | None, tokenizer: Any) -> None:
        config = network.config.get_text_config()  # type: ignore[operator, union-attr]
        super().__init__(network, spec, int(config.hidden_size), head)
        self.tokenizer = tokenizer

    @property
    def transform(self) -> Any:
        """The tokenizer."""
        return self.tokenizer

    def max_length(self) -> int:
        """Longest input in tokens: the recipe's as far as the checkpoint goes, or the checkpoint's own limit, at most 512."""
        return min(self.spec.max_length or 512, self.limit())

    def limit(self) -> int:
        """Longest input in tokens that the tokenizer and the network take."""
        positions = getattr(self.network.config, "max_position_embeddings", None)
        own = int(self.tokenizer.model_max_length)
        if not isinstance(positions, int) or positions <= 0:  # XLNet says -1: without limit
            return own
        return min(own, positions - _unused_positions(self.network))

    def pads_left(self) -> bool:
        """Whether texts are padded on the left, because the classifier reads the last position, padded or not."""
        return False

    def config_facts(self) -> dict[str, Any]:
        return deciding(self.network.config.to_dict())  # type: ignore[operator, union-attr]

    def input_facts(self) -> dict[str, Any]:
        return {**tokenizer_facts(self.tokenizer), "limit": self.limit()}  # not the recipe's own length

    def save_config(self, folder: Path, classes: list[str]) -> None:
        config: Any = copy.deepcopy(self.network.config)
        _name_classes(config, classes)
        config.save_pretrained(folder)
        self._save_tokenizer(folder)

    def _save_network(self, model: Any, folder: Path, classes: list[str], writing: Writing) -> None:
        _name_classes(model.config, classes)
        save_transformers(model, folder, writing)
        self._save_tokenizer(folder)

    def _save_tokenizer(self, folder: Path) -> None:
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self.max_length()  # so that `truncation=True` alone cuts inputs where training did
        tokenizer.save_pretrained(folder)


def _unused_positions(network: nn.Module) -> int:
    """Position embeddings that no token has: RoBERTa and its kin number positions from the padding's index + 1."""
    found = (m.padding_idx for n, m in network.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding))
    return max((index + 1 for index in found if index is not None), default=0)


def _name_classes(config: Any, classes: list[str]) -> None:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    config.problem_type = "single_label_classification"


class SequenceClassifier(TransformersBackbone):
    """`AutoModelForSequenceClassification`, whose last linear layer is the head (`pooling: native`)."""

    loads_with = "transformers.AutoModelForSequenceClassification.from_pretrained('FOLDER')"

    def __init__(self, network: nn.Module, spec: ModelSpec, head: Head | None, tokenizer: Any, head_name: str) -> None:
        self.head_name = head_name
        super().__init__(network, spec, head, tokenizer)

    def features(self, network: nn.Module, inputs: Inputs) -> Tensor:
        return network(**inputs).logits  # the head is an Identity

    def pads_left(self) -> bool:
        # XLNet, whose tokenizer pads so: with padding behind the text, the features would be those of the padding.
        last = getattr(self.network.config, "summary_type", None) == "last"
        return bool(last and self.tokenizer.padding_side == "left")

    def with_head(self, network: nn.Module, head: Head) -> nn.Module:
        replace_module(network, self.head_name, _linear(head))
        network.config.num_labels = len(head.weight_CF)  # type: ignore[union-attr]
        network.num_labels = len(head.weight_CF)  # type: ignore[assignment]
        return network.eval()

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return model(**inputs).logits

    def save(self, model: nn.Module, folder: Path, classes: list[str], writing: Writing | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._save_network(model, folder, classes, writing or Writing())

    def reload(self, folder: Path) -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()


class PooledEncoder(TransformersBackbone):
    """`AutoModel` with explicit pooling and a linear head, laid out as sentence-transformers does (1_Pooling, 2_Dense).

    No transformers class pools such encoders by mean, so that the folder opens with `SentenceTransformer(folder)` (its
    output are the logits) or with `AutoModel` plus the two small files.
    """

    loads_with = "sentence_transformers.SentenceTransformer('FOLDER').encode(texts)"

    def features(self, network: nn.Module, inputs: Inputs) -> Tensor:
        hidden_BTF = network(**inputs).last_hidden_state
        return pool(hidden_BTF, inputs["attention_mask"], self.spec.pooling)

    def with_head(self, network: nn.Module, head: Head) -> nn.Module:
        return nn.ModuleDict({"encoder": network, "head": _linear(head)}).eval()

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        return model["head"](self.features(model["encoder"], inputs))

    def save(self, model: nn.Module, folder: Path, classes: list[str], writing: Writing | None = None) -> None:
        assert isinstance(model, nn.ModuleDict)
        folder.mkdir(parents=True, exist_ok=True)
        writing, linear = writing or Writing(), model["head"]
        assert isinstance(linear, nn.Linear)
        self._save_network(model["encoder"], folder, classes, writing)
        bias_C = None if linear.bias is None else writing.value(linear.bias)
        self.save_head(folder, Head(writing.value(linear.weight), bias_C, classes))

    def save_head(self, folder: Path, head: Head) -> None:
        """Write pooling and head beside the encoder, as sentence-transformers lays them out."""
        dense = {"in_features": self.feature_dim, "out_features": len(head.weight_CF), "bias": head.bias_C is not None}
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            ],
            "sentence_bert_config.json": {"max_seq_length": self.max_length(), "do_lower_case": False},
            "1_Pooling/config.json": {"word_embedding_dimension": self.feature_dim, **_pooling_flags(self.spec.pooling)},
            "2_Dense/config.json": {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        tensors = {"linear.weight": head.weight_CF.contiguous()}
        if head.bias_C is not None:
            tensors["linear.bias"] = head.bias_C.contiguous()
        save_file(tensors, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})

    def reload(self, folder: Path) -> nn.Module:
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        head = read_dense_head(folder)
        if head is None:
            raise CheckpointError(f"'{folder}' has no head (2_Dense/model.safetensors).", "Export it again.")
        return self.with_head(encoder, head)


def pool(hidden_BTF: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Token features to one vector (B, F): first token, mean over real tokens, or last real token."""
    if pooling == "cls":
        return hidden_BTF[:, 0]
    if pooling == "mean":
        weight_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTF.dtype)
        return (hidden_BTF * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1e-9)
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)
    return hidden_BTF[torch.arange(hidden_BTF.shape[0], device=hidden_BTF.device), last_B]


def _pooling_flags(pooling: str) -> dict[str, bool]:
    names = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
    return {flag: name == pooling for name, flag in names.items()}


def _linear(head: Head) -> nn.Linear:
    linear = nn.Linear(head.weight_CF.shape[1], head.weight_CF.shape[0], bias=head.bias_C is not None)
    with torch.no_grad():
        linear.weight.copy_(head.weight_CF)
        if head.bias_C is not None:
            linear.bias.copy_(head.bias_C)
    return linear.requires_grad_(False)


def read_dense_head(folder: Path) -> Head | None:
    """The head of a folder that `PooledEncoder.save` wrote, None when there is none."""
    path = folder / "2_Dense" / "model.safetensors"
    if not path.is_file():
        return None
    tensors = load_file(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Head(tensors["linear.weight"], tensors.get("linear.bias"), class_names(config.get("id2label")))


def class_names(id2label: dict[Any, str] | None) -> list[str] | None:
    """Class names of a config, None when they are the library's placeholders (LABEL_0 …)."""
    if not id2label:
        return None
    names = [id2label[k] for k in sorted(id2label, key=int)]
    return None if all(str(n).startswith("LABEL_") for n in names) else [str(n) for n in names]


def load_tokenizer(name: str, spec: ModelSpec) -> Any:
    """The checkpoint's tokenizer, with a padding token (its end token when it has none of its own)."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def attention_of(spec: ModelSpec) -> dict[str, Any]:
    """Keyword for `from_pretrained`. auto: the library's default (sdpa where the architecture has it)."""
    return {} if spec.attention == "auto" else {"attn_implementation": spec.attention}


def load_classifier(location: Location, spec: ModelSpec) -> TransformersBackbone:
    """Open a transformers checkpoint for text classification.

    Raises:
        CheckpointError: not found, not reachable, pickled weights only, weights of the encoder are missing, or no classifier
            class for this architecture.
    """
    arguments = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    name = str(location.path) if location.path else location.name
    try:
        config = AutoConfig.from_pretrained(name, **arguments)
        tokenizer = load_tokenizer(name, spec)
        if spec.pooling in POOLED:
            network, missing = _open(AutoModel, name, spec, config, arguments)
            require_encoder(network, missing, spec.name, bare=True)
            own = read_dense_head(location.path) if location.path else None
            encoder = PooledEncoder(network, spec, own, tokenizer)
            encoder.absent = frozenset(missing)
            return encoder
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        network, missing = _open(AutoModelForSequenceClassification, name, spec, config, arguments)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        raise CheckpointError(
            f"transformers cannot open '{spec.name}': {first}",
            "Check model.name, or name a local folder with config.json and safetensors.",
        ) from error
    require_encoder(network, missing, spec.name)
    head_name, linear = final_linear(network, spec)
    fresh_head = any(key.startswith(head_name + ".") for key in missing) or spec.random_init
    own = None if fresh_head else Head(linear.weight.detach().clone(), _bias(linear), class_names(config.id2label))
    replace_module(network, head_name, nn.Identity())
    opened = SequenceClassifier(network, spec, own, tokenizer, head_name)
    opened.head_has_bias = linear.bias is not None
    opened.absent = frozenset(missing)
    if between := made_up_layers(network, missing):  # the head is no part of it any more
        opened.notes.append(
            f"The checkpoint has no weights for {', '.join(between)}, between its encoder and the head: they are random, "
            "and methods that do not train the whole network leave them so. To do without them, write model.pooling: cls or mean."
        )
    return opened


def _open(auto: Any, name: str, spec: ModelSpec, config: Any, arguments: dict[str, Any]) -> tuple[nn.Module, set[str]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the checkpoint lacks (a fresh pre-classifier, say) is frozen: it must be the same every time
        if spec.random_init:
            return auto.from_config(config, trust_remote_code=spec.trust_remote_code, **attention_of(spec)).float(), set()
        shards(Path(name))  # the library takes for granted that an index is one
        network, info = auto.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **arguments,
            **attention_of(spec),
        )
    return network, set(info["missing_keys"])


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().clone()


def final_linear(network: nn.Module, spec: ModelSpec) -> tuple[str, nn.Linear]:
    """The classifier's last linear layer: the last one outside of the base model."""
    prefix = getattr(network, "base_model_prefix", "") + "."
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear) and not n.startswith(prefix)]
    if not found:
        raise CheckpointError(f"'{spec.name}' ends in no linear classifier.", "Choose model.pooling: cls, mean or last.")
    return found[-1]
