"""Reloader `plain`: a checkpoint folder, by its library's public loader in float32. Which library is read from the folder.

Shapes: N samples, B batch, C classes, T tokens, F features.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Answer = tuple[dict[str, Tensor], dict[str, Any]]


def answer(folder: Path, asked: Any) -> Answer:
    """Logits (N, C), and what was found."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "architecture" in config:
        return _timm(folder, asked)
    if asked.kind == "prompts":
        return _causal_lm(folder, asked)
    if (folder / "modules.json").is_file():
        return _pooled(folder, asked)
    return _sequence_classifier(folder, asked)


def _timm(folder: Path, asked: Any) -> Answer:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    logits_NC = torch.cat([model(pixels) for pixels in asked.pixels(transform)])
    classes = list(model.pretrained_cfg.get("label_names") or [])
    return {"logits": logits_NC}, {"classes": classes, "missing": [], "versions": versions(timm)}


def _sequence_classifier(folder: Path, asked: Any) -> Answer:
    import transformers

    model, missing = opened(transformers.AutoModelForSequenceClassification, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits_NC = torch.cat([model(**batch).logits for batch in asked.tokenised(tokenizer)])
    return {"logits": logits_NC}, {"classes": class_names(model.config), "missing": missing, "versions": versions(transformers)}


def _pooled(folder: Path, asked: Any) -> Answer:
    """SentenceTransformer(folder); where that is not installed its computation: AutoModel, then what 1_Pooling and 2_Dense say."""
    import transformers

    encoder, missing = opened(transformers.AutoModel, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if find_spec("sentence_transformers") is not None:
        import sentence_transformers

        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu").float().eval()
        logits_NC = torch.cat([model(dict(batch))["sentence_embedding"] for batch in asked.tokenised(tokenizer)])
        libraries = versions(transformers, sentence_transformers)
        return {"logits": logits_NC}, {"classes": class_names(encoder.config), "missing": missing, "versions": libraries}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "2_Dense" / "model.safetensors").items()}
    logits = []
    for batch in asked.tokenised(tokenizer):
        features_BF = pool(encoder(**batch).last_hidden_state, batch["attention_mask"], pooling)
        logits.append(torch.nn.functional.linear(features_BF, tensors["linear.weight"], tensors.get("linear.bias")))
    found = {"classes": class_names(encoder.config), "missing": missing, "versions": versions(transformers)}
    return {"logits": torch.cat(logits)}, found


def _causal_lm(folder: Path, asked: Any) -> Answer:
    """One prompt at a time, without padding; the letters' logits at its last position."""
    import transformers

    model, missing = opened(transformers.AutoModelForCausalLM, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = [model(input_ids=ids).logits[0, -1, asked.letter_ids] for ids in asked.prompts(tokenizer)]
    tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(asked.letter_ids)]
    return {"logits": torch.stack(logits)}, {"classes": tokens, "missing": missing, "versions": versions(transformers)}


def opened(auto: Any, folder: Path) -> tuple[Any, list[str]]:
    """A transformers model in float32, and the weights that it lacks or does not use."""
    model, info = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *(str(k) for k in info["mismatched_keys"])]
    return model.eval(), sorted(wrong)


def pool(hidden_BTF: Tensor, mask_BT: Tensor, pooling: dict[str, Any]) -> Tensor:
    """Features (B, F) by what 1_Pooling/config.json says."""
    if pooling.get("pooling_mode_cls_token"):
        return hidden_BTF[:, 0]
    if pooling.get("pooling_mode_mean_tokens"):
        weight_BT1 = mask_BT.unsqueeze(-1).float()
        return (hidden_BTF * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1e-9)
    if pooling.get("pooling_mode_lasttoken"):
        last_B = (mask_BT * torch.arange(mask_BT.shape[1])).argmax(1)
        return hidden_BTF[torch.arange(len(hidden_BTF)), last_B]
    raise ValueError("1_Pooling/config.json names no pooling.")


def class_names(config: Any) -> list[str]:
    """The class names in a configuration, in order."""
    id2label = config.id2label or {}
    return [str(id2label[k]) for k in sorted(id2label, key=int)]


def versions(*libraries: Any) -> dict[str, str]:
    """Of torch and these libraries."""
    return {library.__name__: library.__version__ for library in (torch, *libraries)}
