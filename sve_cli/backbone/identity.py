"""What beside its weights decides a checkpoint's numbers: the fields of its configuration, and how inputs are prepared.

They are kept by name, and compared where both sides have them: a later version of a library may know more fields, and a copy
that a library saved anew may hold fewer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from sve_cli.errors import CheckpointError

if TYPE_CHECKING:
    from sve_cli.backbone.base import Backbone

CONFIG_FACTS, INPUT_FACTS = "checkpoint_config", "checkpoint_inputs"
# Names, versions and labels, which a copy may have others of, and what only says how a network is run.
UNDECIDED = {
    "id2label", "label2id", "num_labels", "num_classes", "problem_type", "architectures", "transformers_version", "dtype",
    "torch_dtype", "name_or_path", "auto_map", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "output_router_logits", "finetuning_task", "task_specific_params", "gradient_checkpointing", "tokenizer_class", "torchscript",
    "attn_implementation", "transformers_weights", "initializer_range",
}  # fmt: skip
PROBES = (
    "The quick BROWN fox, it's 3.14 days late!", "déjà-vu naïve café Straße 東京 😀", "  two  spaces\nand\ta tab ",
    "unbelievably antidisestablishmentarianism http://a.b/c_d", "Question: A. yes B. no\nAnswer:",
)  # fmt: skip


def identity(backbone: Backbone) -> dict[str, dict[str, Any]]:
    """What a run or an adapter keeps of its checkpoint beside the digest of the weights."""
    return {CONFIG_FACTS: backbone.config_facts(), INPUT_FACTS: backbone.input_facts()}


def require_same(backbone: Backbone, stored: Mapping[str, Any], owner: str) -> None:
    """Refuse a checkpoint whose configuration or preparation of inputs was changed.

    Args:
        stored: what `identity` said before; what it does not hold is not compared, as those of older versions.
        owner: what was trained on it, as in "this run".

    Raises:
        CheckpointError: saying which of the two changed, and in which fields.
    """
    words = {CONFIG_FACTS: "configuration", INPUT_FACTS: "image transform" if backbone.modality == "image" else "tokenizer"}
    for key, now in identity(backbone).items():
        if changed := differences(stored.get(key) or {}, now):
            raise CheckpointError(
                f"The {words[key]} of the checkpoint '{backbone.spec.name}' is not what {owner} was trained with: "
                f"{'; '.join(changed[:3])}.",
                "Put the old checkpoint back, or train again.",
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> list[str]:
    """The fields that both have and that differ, in words."""
    found = []
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{above}{name}.")
        elif old != new:
            text = f"{json.dumps(new)}, was {json.dumps(old)}"
            found.append(f"{above}{name} is {text if len(text) < 80 else 'another'}")
    return found


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what decides no number, as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return _deciding(plain)


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k not in UNDECIDED and not k.startswith("_")}
    return {k: _deciding(v) if isinstance(v, dict) else v for k, v in kept.items()}


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Digests of a tokenizer's vocabulary and of how it splits, and its special tokens: the same for a copy it saved itself."""
    vocabulary = "\n".join(f"{i} {token}" for token, i in sorted(tokenizer.get_vocab().items()))
    split = [list(tokenizer(text)["input_ids"]) for text in PROBES]
    special = {k: getattr(tokenizer, f"{k}_token_id", None) for k in ("bos", "eos", "cls", "sep", "pad", "unk", "mask")}
    return {
        "vocabulary": _digest(vocabulary), "splitting": _digest(json.dumps(split)),
        "padding_side": tokenizer.padding_side, "special_tokens": {k: v for k, v in special.items() if v is not None},
    }  # fmt: skip


def head_counts(network: nn.Module) -> list[int]:
    """Attention heads of every attention layer: the shapes of the weights do not show them."""
    return [n for module in network.modules() if isinstance(n := getattr(module, "num_heads", None), int)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
