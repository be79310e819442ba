"""The targeted weights of a checkpoint, read one by one from its safetensors files, without building the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sve_cli.backbone.base import Backbone, replace_module
from sve_cli.backbone.files import damaged, tensor_files
from sve_cli.backbone.linears import LinearView, canonical
from sve_cli.backbone.resolve import Location, locate
from sve_cli.errors import SveError
from sve_cli.recipe.spec import MethodSpec, ModelSpec

Layer = tuple[str, tuple[int, int], Callable[[], Tensor]]


def stream_targets(spec: ModelSpec, method: MethodSpec, task_name: str) -> list[Layer]:
    """(name, (O, I), load) per targeted layer; `load` reads that one weight as float32 (O, I).

    They are those that training works on. A local folder is streamed; anything else is opened as a whole first (the library
    downloads it), and so is a network that cannot be built without its weights.

    Raises:
        CheckpointError: the checkpoint cannot be opened; so does `load` where its file is damaged.
        SveError: see `select_targets`.
    """
    location = locate(spec)
    files = {} if location.path is None or spec.random_init else tensor_files(location.path, location.library)
    skeleton = _skeleton(location, spec, task_name) if files else None
    if skeleton is not None:
        views = skeleton.targets(method)
        keys = [_key(view.name, files) for view in views]
        if all(keys):
            return [_streamed(view, files[key], key) for view, key in zip(views, keys, strict=True) if key]
    from sve_cli.backbone import load_backbone

    views = load_backbone(spec, "image_classification" if location.library == "timm" else task_name).targets(method)
    return [_opened(view) for view in views]


def _streamed(view: LinearView, file: Path, key: str) -> Layer:
    def load() -> Tensor:
        try:
            with safe_open(file, framework="pt") as f:
                return canonical(f.get_tensor(key), view.kind)
        except (OSError, SafetensorError) as error:
            raise damaged(file, error) from error

    return view.name, _shape(view), load


def _opened(view: LinearView) -> Layer:
    return view.name, _shape(view), lambda: view.weight_OI


def _shape(view: LinearView) -> tuple[int, int]:
    shape = view.native_weight.shape
    if view.kind == "conv1d":
        return int(shape[1]), int(shape[0])
    return int(shape[0]), int(shape[1:].numel())


def _key(layer: str, files: dict[str, Path]) -> str | None:
    """The file's name of a layer's weight: as it is, or with or without the base model's prefix."""
    name = f"{layer}.weight"
    _, _, bare = name.partition(".")
    for candidate in (name, bare):
        if candidate in files:
            return candidate
    longer = [k for k in files if k.endswith("." + name)]
    return longer[0] if len(longer) == 1 else None


def _skeleton(location: Location, spec: ModelSpec, task_name: str) -> Backbone | None:
    """The checkpoint as the task opens it, on the meta device: names and shapes, no weights, no tokenizer.

    None: it cannot be built so. Opening it as a whole then succeeds, or says in a sentence why not.
    """
    try:
        with torch.device("meta"):
            if location.library == "timm":
                from sve_cli.backbone.timm_backbone import load_timm

                return load_timm(location, spec, build_only=True)
            return _text_skeleton(location, spec, task_name)
    except (SveError, OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError):
        return None


def _text_skeleton(location: Location, spec: ModelSpec, task_name: str) -> Backbone:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from sve_cli.backbone import causal_lm
    from sve_cli.backbone import transformers_backbone as texts

    config = AutoConfig.from_pretrained(str(location.path), trust_remote_code=spec.trust_remote_code)

    def built(auto: Any) -> Any:
        return auto.from_config(config, trust_remote_code=spec.trust_remote_code, **texts.attention_of(spec))

    if task_name == "multiple_choice":
        causal_lm.check_pooling(spec)
        return causal_lm.CausalLM(built(AutoModelForCausalLM), spec, None, None)
    if spec.pooling in texts.POOLED:
        return texts.PooledEncoder(built(AutoModel), spec, None, None)
    network = built(AutoModelForSequenceClassification)
    head_name, _ = texts.final_linear(network, spec)
    replace_module(network, head_name, nn.Identity())
    return texts.SequenceClassifier(network, spec, None, None, head_name)
