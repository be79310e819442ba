"""The fresh process: opens exported folders as a stranger would and answers raw inputs. It imports nothing of this package.

Run as `python worker.py REQUEST.json`; the request:
    folders: what to open, in turn; answers go to `<answers>/<i>.safetensors`, tensor `logits` (N, C), with what was found
        (classes, missing weights, versions) in its metadata.
    texts, pairs | images (paths) | prompts (text, or token ids) with letter_ids: the inputs.
Which library opens a folder is read from the folder alone.

Shapes: N samples, B batch, C classes, T tokens, F features.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BATCH = 16


def main(request_path: str) -> None:
    """Answer a request file."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    for i, folder in enumerate(request["folders"]):
        logits_NC, found = answer(Path(folder), request)
        found["strange"] = [name for name in sys.modules if name.split(".")[0] == "sve_cli"]
        save_file({"logits": logits_NC.contiguous()}, Path(request["answers"]) / f"{i}.safetensors", {"found": json.dumps(found)})


def answer(folder: Path, request: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Open one folder by its library's public loader, in float32: logits (N, C), and what was found."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.inference_mode():
        if "architecture" in config:
            return _timm(folder, request)
        if request.get("prompts") is not None:
            return _causal_lm(folder, request)
        if (folder / "modules.json").is_file():
            return _pooled(folder, request)
        return _sequence_classifier(folder, request)


def _timm(folder: Path, request: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    import timm
    from PIL import Image

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images = [Image.open(path).convert("RGB") for path in request["images"]]
    logits = [model(torch.stack([transform(i) for i in images[k : k + BATCH]])) for k in range(0, len(images), BATCH)]
    classes = list(model.pretrained_cfg.get("label_names") or [])
    return torch.cat(logits), {"classes": classes, "missing": [], "versions": _versions(timm)}


def _sequence_classifier(folder: Path, request: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    import transformers

    model, missing = _open(transformers.AutoModelForSequenceClassification, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = [model(**batch).logits for batch in _tokenised(tokenizer, request)]
    return torch.cat(logits), {"classes": _classes(model), "missing": missing, "versions": _versions(transformers)}


def _pooled(folder: Path, request: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """AutoModel, then what 1_Pooling and 2_Dense say: the computation of SentenceTransformer(folder)."""
    import transformers

    encoder, missing = _open(transformers.AutoModel, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "2_Dense" / "model.safetensors")
    logits = []
    for batch in _tokenised(tokenizer, request):
        features_BF = _pool(encoder(**batch).last_hidden_state, batch["attention_mask"], pooling)
        logits.append(torch.nn.functional.linear(features_BF, tensors["linear.weight"], tensors.get("linear.bias")))
    return torch.cat(logits), {"classes": _classes(encoder), "missing": missing, "versions": _versions(transformers)}


def _causal_lm(folder: Path, request: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """One prompt at a time, without padding; the letters' logits at its last position."""
    import transformers

    model, missing = _open(transformers.AutoModelForCausalLM, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = []
    for prompt in request["prompts"]:
        ids = prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
        logits.append(model(input_ids=torch.tensor([ids])).logits[0, -1, request["letter_ids"]])
    tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(request["letter_ids"])]
    return torch.stack(logits), {"classes": tokens, "missing": missing, "versions": _versions(transformers)}


def _open(auto: Any, folder: Path) -> tuple[Any, list[str]]:
    model, info = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *(str(k) for k in info["mismatched_keys"])]
    return model.eval(), sorted(wrong)


def _tokenised(tokenizer: Any, request: dict[str, Any]) -> list[Any]:
    texts, pairs = request["texts"], request.get("pairs")
    return [
        tokenizer(texts[k : k + BATCH], pairs[k : k + BATCH] if pairs else None, truncation=True, padding=True, return_tensors="pt")
        for k in range(0, len(texts), BATCH)
    ]


def _pool(hidden_BTF: Tensor, mask_BT: Tensor, pooling: dict[str, Any]) -> Tensor:
    if pooling.get("pooling_mode_cls_token"):
        return hidden_BTF[:, 0]
    if pooling.get("pooling_mode_mean_tokens"):
        weight_BT1 = mask_BT.unsqueeze(-1).float()
        return (hidden_BTF * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1e-9)
    if pooling.get("pooling_mode_lasttoken"):
        last_B = (mask_BT * torch.arange(mask_BT.shape[1])).argmax(1)
        return hidden_BTF[torch.arange(len(hidden_BTF)), last_B]
    raise ValueError("1_Pooling/config.json names no pooling.")


def _classes(model: Any) -> list[str]:
    id2label = model.config.id2label or {}
    return [str(id2label[k]) for k in sorted(id2label, key=int)]


def _versions(library: Any) -> dict[str, str]:
    return {"torch": torch.__version__, library.__name__: library.__version__}


if __name__ == "__main__":
    main(sys.argv[1])
