"""Reloader `distilled`: a checkpoint folder by its library's public loader, with the log-precision of evidence.safetensors.

The features are what the checkpoint's last linear layer reads. Opening is as in `plain.py`, which lies beside this file.
Shapes: N samples, C classes, F features, B batch, T tokens.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Seen = tuple[Tensor, Tensor, dict[str, Any]]  # logits (N, C), features (N, F), what was found


def answer(folder: Path, asked: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Logits (N, C), log-precision, entropy and mutual information (N,), and what was found; prompts: the first two."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    evidence = load_file(folder / "evidence.safetensors")
    if "architecture" in config:
        logits_NC, features_NF, found = _timm(folder, asked)
    elif asked.kind == "prompts":
        logits_NC, features_NF, found = _causal_lm(folder, asked)
    elif (folder / "modules.json").is_file():
        logits_NC, features_NF, found = _pooled(folder, asked)
    else:
        logits_NC, features_NF, found = _sequence_classifier(folder, asked)
    log_precision_N = features_NF.float() @ evidence["weight"] + evidence["bias"]
    outputs = {"logits": logits_NC, "log_precision": log_precision_N}
    if asked.kind != "prompts":  # the options differ between prompts
        probs_NC = torch.softmax(logits_NC.double(), -1)
        alpha_NC = probs_NC * log_precision_N.double().exp().unsqueeze(-1)
        expected_N = torch.digamma(alpha_NC.sum(-1) + 1) - (probs_NC * torch.digamma(alpha_NC + 1)).sum(-1)
        outputs["entropy"] = torch.special.entr(probs_NC).sum(-1)
        outputs["mutual_information"] = (outputs["entropy"] - expected_N).clamp_min(0)
    return outputs, found


def _plain() -> Any:
    spec = importlib.util.spec_from_file_location("reloader_plain", Path(__file__).with_name("plain.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _timm(folder: Path, asked: Any) -> Seen:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    batches = asked.pixels(transform)
    features = [model.forward_head(model.forward_features(pixels), pre_logits=True) for pixels in batches]
    found = {"classes": list(model.pretrained_cfg.get("label_names") or []), "missing": [], "versions": _plain()._versions(timm)}
    return torch.cat([model(pixels) for pixels in batches]), torch.cat(features), found


def _sequence_classifier(folder: Path, asked: Any) -> Seen:
    import transformers

    plain = _plain()
    model, missing = plain._open(transformers.AutoModelForSequenceClassification, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    last = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.startswith(model.base_model_prefix)][-1]
    features: list[Tensor] = []
    last.register_forward_pre_hook(lambda module, arguments: features.append(arguments[0]))
    logits_NC = torch.cat([model(**batch).logits for batch in asked.tokenised(tokenizer)])
    found = {"classes": plain._classes(model), "missing": missing, "versions": plain._versions(transformers)}
    return logits_NC, torch.cat(features), found


def _pooled(folder: Path, asked: Any) -> Seen:
    import transformers

    plain = _plain()
    encoder, missing = plain._open(transformers.AutoModel, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    head = {name: tensor.float() for name, tensor in load_file(folder / "2_Dense" / "model.safetensors").items()}
    features = [plain._pool(encoder(**b).last_hidden_state, b["attention_mask"], pooling) for b in asked.tokenised(tokenizer)]
    features_NF = torch.cat(features)
    found = {"classes": plain._classes(encoder), "missing": missing, "versions": plain._versions(transformers)}
    return torch.nn.functional.linear(features_NF, head["linear.weight"], head.get("linear.bias")), features_NF, found


def _causal_lm(folder: Path, asked: Any) -> Seen:
    import transformers

    plain = _plain()
    model, missing = plain._open(transformers.AutoModelForCausalLM, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits, features = [], []
    for ids in asked.prompts(tokenizer):
        logits.append(model(input_ids=ids).logits[0, -1, asked.letter_ids])
        features.append(model.base_model(input_ids=ids).last_hidden_state[0, -1])
    tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(asked.letter_ids)]
    found = {"classes": tokens, "missing": missing, "versions": plain._versions(transformers)}
    return torch.stack(logits), torch.stack(features), found
