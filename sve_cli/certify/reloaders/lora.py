"""Reloader `lora`: the checkpoint by its library, the adapter by peft's public loader, float32.

Shapes: N samples, B batch, C classes, T tokens, F features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Answer = tuple[dict[str, Tensor], dict[str, Any]]


def answer(folder: Path, asked: Any) -> Answer:
    """Logits (N, C), and what was found."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    place = asked.request["base_place"]
    if "architecture" in config:
        return _timm(folder, place, config, asked)
    if asked.kind == "prompts":
        return _causal_lm(folder, place, asked)
    if (folder / "modules.json").is_file():
        return _pooled(folder, place, asked)
    return _sequence_classifier(folder, place, asked)


def _adapted(base: Any, folder: Path) -> tuple[Any, list[str]]:
    """The adapted network, and the weights that the adapter lacks or that nothing reads."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        model: Any = PeftModel.from_pretrained(base.float(), folder).eval()
    except KeyError as error:  # how peft says that a module of modules_to_save is not in the file
        raise RuntimeError(f"the adapter lacks the weight {error}") from error
    stored, used = (
        set(load_file(folder / "adapter_model.safetensors")),
        get_peft_model_state_dict(model, save_embedding_layers=False),
    )
    return model, sorted(stored ^ set(used))


def _timm(folder: Path, place: str, config: dict[str, Any], asked: Any) -> Answer:
    import peft
    import timm

    plain = asked.reloader("plain")
    name = f"local-dir:{place}" if Path(place).is_dir() else place
    base: Any = timm.create_model(name, pretrained=True, **{k: v for k, v in config["model_args"].items() if k != "num_classes"})
    base.reset_classifier(config["num_classes"])
    model, missing = _adapted(base, folder)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"]), is_training=False)
    logits_NC = torch.cat([model(pixels) for pixels in asked.pixels(transform)])
    return {"logits": logits_NC}, {
        "classes": list(config["label_names"]),
        "missing": missing,
        "versions": plain.versions(timm, peft),
    }


def _sequence_classifier(folder: Path, place: str, asked: Any) -> Answer:
    import peft
    import transformers

    plain = asked.reloader("plain")
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForSequenceClassification
    model, missing = _adapted(_open(auto, place, config=config, ignore_mismatched_sizes=True), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits_NC = torch.cat([model(**batch).logits for batch in asked.tokenised(tokenizer)])
    return {"logits": logits_NC}, {
        "classes": plain.class_names(config),
        "missing": missing,
        "versions": plain.versions(transformers, peft),
    }


def _pooled(folder: Path, place: str, asked: Any) -> Answer:
    """The adapted encoder, then what 1_Pooling and 2_Dense say."""
    import peft
    import transformers

    plain = asked.reloader("plain")
    config = transformers.AutoConfig.from_pretrained(folder)
    model, missing = _adapted(_open(transformers.AutoModel, place), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    head = {name: tensor.float() for name, tensor in load_file(folder / "2_Dense" / "model.safetensors").items()}
    logits = []
    for batch in asked.tokenised(tokenizer):
        features_BF = plain.pool(model(**batch).last_hidden_state, batch["attention_mask"], pooling)
        logits.append(torch.nn.functional.linear(features_BF, head["linear.weight"], head.get("linear.bias")))
    return {"logits": torch.cat(logits)}, {
        "classes": plain.class_names(config),
        "missing": missing,
        "versions": plain.versions(transformers, peft),
    }


def _causal_lm(folder: Path, place: str, asked: Any) -> Answer:
    """One prompt at a time, without padding; the letters' logits at its last position."""
    import peft
    import transformers

    plain = asked.reloader("plain")
    model, missing = _adapted(_open(transformers.AutoModelForCausalLM, place), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = [model(input_ids=ids).logits[0, -1, asked.letter_ids] for ids in asked.prompts(tokenizer)]
    tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(asked.letter_ids)]
    return {"logits": torch.stack(logits)}, {"classes": tokens, "missing": missing, "versions": plain.versions(transformers, peft)}


def _open(auto: Any, place: str, **arguments: Any) -> Any:
    return auto.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **arguments)
