"""timm networks: by name, hub id, local folder or bare weight file.

Shapes: B batch, C classes, F features.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import VisionTransformer
from torch import Tensor, nn

from sve_cli.backbone.base import Backbone, Head, Inputs
from sve_cli.backbone.identity import deciding, head_counts
from sve_cli.backbone.resolve import Location, refuse_revision
from sve_cli.backbone.weights import Writing, write_weights
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import ModelSpec

POOLING = {"cls": "token", "mean": "avg"}


class TimmBackbone(Backbone):
    """A timm model; features are its own `forward_head(..., pre_logits=True)`."""

    library = "timm"
    modality = "image"
    loads_with = "timm.create_model('local-dir:FOLDER', pretrained=True)"

    def __init__(self, network: nn.Module, spec: ModelSpec, head: Head | None, model_args: dict[str, Any]) -> None:
        self.model_args = model_args
        self.data_config = resolve_model_data_config(network)
        if spec.image_size is not None:  # timm tells the network, but not its data configuration
            self.data_config["input_size"] = (self.data_config["input_size"][0], spec.image_size, spec.image_size)
        super().__init__(network, spec, int(network.head_hidden_size), head)  # type: ignore[arg-type]

    def features(self, network: nn.Module, inputs: Inputs) -> Tensor:
        tokens = network.forward_features(inputs["image"])  # type: ignore[operator]
        return network.forward_head(tokens, pre_logits=True)  # type: ignore[operator]

    def with_head(self, network: nn.Module, head: Head) -> nn.Module:
        network.reset_classifier(len(head.weight_CF))  # type: ignore[operator]
        network.num_classes = len(head.weight_CF)  # type: ignore[assignment]
        linear = network.get_classifier()  # type: ignore[operator]
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"The classifier of '{self.spec.name}' is a {type(linear).__name__}, not a linear layer.")
        with torch.no_grad():
            linear.weight.copy_(head.weight_CF)
            linear.bias.copy_(head.bias_C if head.bias_C is not None else torch.zeros(len(head.weight_CF)))
        return network.eval()

    def own_classifier(self, network: nn.Module) -> list[nn.Module]:
        classifier = network.get_classifier()  # type: ignore[operator]
        return list(classifier) if isinstance(classifier, tuple) else [classifier]  # distilled networks have two

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return model(inputs["image"])

    def save(self, model: nn.Module, folder: Path, classes: list[str], writing: Writing | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # One file whatever the shard size: timm reads no others.
        writing = replace(writing or Writing(), shard_size=None)
        write_weights(folder, model.state_dict(keep_vars=True), writing)
        self._write_config(folder, classes, model, writing.dtype)

    def config_facts(self) -> dict[str, Any]:
        cfg = dict(self.network.pretrained_cfg)  # type: ignore[arg-type]
        facts = {"architecture": str(cfg.get("architecture", "")).partition(".")[0], "num_heads": head_counts(self.network)}
        return deciding({**facts, "model_args": {k: v for k, v in self.model_args.items() if k != "img_size"}})

    def input_facts(self) -> dict[str, Any]:
        return deciding(resolve_model_data_config(self.network))  # without the recipe's own image size

    def save_config(self, folder: Path, classes: list[str]) -> None:
        self._write_config(folder, classes, self.network)

    def _write_config(self, folder: Path, classes: list[str], model: nn.Module, dtype: torch.dtype | None = None) -> None:
        cfg = dict(self.network.pretrained_cfg)  # type: ignore[arg-type]
        keep = (
            "input_size",
            "fixed_input_size",
            "interpolation",
            "crop_pct",
            "crop_mode",
            "mean",
            "std",
            "pool_size",
            "classifier",
        )
        pretrained = {k: cfg[k] for k in keep if k in cfg}
        pretrained |= {"num_classes": len(classes), "input_size": list(self.data_config["input_size"])}
        config = {
            "architecture": cfg.get("architecture") or self.network.default_cfg["architecture"],  # type: ignore[index]
            "num_classes": len(classes),
            "num_features": self.feature_dim,
            "global_pool": _pool_name(model),
            "label_names": classes,
            "model_args": {**self.model_args, "num_classes": len(classes)},
            "pretrained_cfg": pretrained,
            **({} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def reload(self, folder: Path) -> nn.Module:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    @property
    def transform(self) -> Any:
        """The evaluation transform (PIL image -> normalised tensor)."""
        return create_transform(**self.data_config, is_training=False)


def load_timm(location: Location, spec: ModelSpec, build_only: bool = False) -> TimmBackbone:
    """Open a timm checkpoint.

    Raises:
        CheckpointError: unknown name, unreachable hub, weights that do not fit.
    """
    extra: dict[str, Any] = {}
    folder_config: dict[str, Any] = {}
    if location.path is not None:
        folder_config = json.loads((location.path / "config.json").read_text(encoding="utf-8"))
    architecture = folder_config.get("architecture", location.name).partition(".")[0]
    known = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if spec.image_size is not None and (known is None or known.fixed_input_size):  # other networks take images of any size
        extra["img_size"] = spec.image_size
    if spec.pooling in POOLING:
        extra["global_pool"] = POOLING[spec.pooling]
    elif spec.pooling == "last":
        raise CheckpointError("model.pooling: 'last' makes no sense for images.", "Use native, cls or mean.")
    name = _library_name(location, spec)
    pretrained = not spec.random_init and not build_only and location.file is None
    if spec.random_init:
        torch.manual_seed(0)  # the same random network every time, so that a run can be resumed and evaluated
    try:
        if spec.pooling in POOLING:
            extra |= _own_norm(name)
        network = timm.create_model(name, pretrained=pretrained, **extra)
        if location.file is not None and not build_only and not spec.random_init:
            network.load_state_dict(load_file(location.file))
    except (RuntimeError, OSError, SafetensorError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise CheckpointError(
            f"timm cannot open '{spec.name}': {_first_lines(error)}",
            "Check the name (timm.list_models), or name a local folder with config.json and weights.",
        ) from error
    classes = folder_config.get("label_names") or _labels_of(network)
    head = None if spec.random_init else _own_head(network, classes)
    args = {**folder_config.get("model_args", {}), **extra}
    return TimmBackbone(network, spec, head, args)


def _library_name(location: Location, spec: ModelSpec) -> str:
    """What timm is asked for, with the revision in it.

    Raises:
        CheckpointError: the recipe asks for a revision or for an attention implementation that timm cannot be told.
    """
    if spec.attention != "auto":
        raise CheckpointError(
            f"model.attention is '{spec.attention}', but timm networks choose their attention themselves.",
            "Remove model.attention.",
        )
    name = location.name if location.path is None else f"local-dir:{location.path}"
    if spec.revision is None:
        return name
    if not name.startswith(("hf-hub:", "hf_hub:")) or "@" in name:
        refuse_revision(spec, "hf-hub:ORGANISATION/NAME")
    return f"{name}@{spec.revision}"


def _own_norm(name: str) -> dict[str, bool]:
    """The argument that keeps the checkpoint's own final norm where it is, wherever the tokens of a vision transformer are pooled.

    Left to itself, timm puts it behind the pooling where that is a mean, and in front of it elsewhere.
    """
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    known = VisionTransformer if isinstance(network, VisionTransformer) else type(network)  # some subclasses only pass arguments on
    keys = [key for key in ("fc_norm", "use_fc_norm") if key in inspect.signature(known).parameters]
    return {keys[0]: not isinstance(network.fc_norm, nn.Identity)} if keys else {}


def _first_lines(error: Exception) -> str:
    """What an error says, as one line: of weights that do not fit, the names of some follow the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:3]) or type(error).__name__)[:300]


def _own_head(network: nn.Module, classes: list[str] | None) -> Head | None:
    classifier = network.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        return None
    bias = None if classifier.bias is None else classifier.bias.detach().clone()
    return Head(classifier.weight.detach().clone(), bias, classes)


def _pool_name(model: nn.Module) -> str | None:
    pool = getattr(model, "global_pool", None)  # a string for vision transformers, a module for most CNNs
    return pool if isinstance(pool, str) else None


def _labels_of(network: nn.Module) -> list[str] | None:
    names = (getattr(network, "pretrained_cfg", None) or {}).get("label_names")
    return list(names) if names else None
