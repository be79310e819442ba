"""Causal language models read at the last position of a left-padded prompt, for multiple choice.

Shapes: B batch, T tokens, C options (letters), F features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sve_cli.backbone.base import Head, Inputs
from sve_cli.backbone.missing import made_up_layers, require_encoder
from sve_cli.backbone.resolve import Location
from sve_cli.backbone.transformers_backbone import TransformersBackbone, _open, load_tokenizer
from sve_cli.backbone.weights import Writing, save_transformers
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import ModelSpec


class CausalLM(TransformersBackbone):
    """`AutoModelForCausalLM`; the head are the rows of the LM head that belong to the letters."""

    loads_with = "transformers.AutoModelForCausalLM.from_pretrained('FOLDER')"
    letter_ids: list[int] | None = None  # set by the task, once the letters' tokens are known

    def features(self, network: nn.Module, inputs: Inputs) -> Tensor:
        mask_BT = inputs["attention_mask"]
        position_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)  # padding must not shift positions
        hidden = network.base_model(  # type: ignore[operator]
            input_ids=inputs["input_ids"], attention_mask=mask_BT, position_ids=position_BT, use_cache=False
        )
        last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)  # the last real token, whichever side is padded
        return hidden.last_hidden_state[torch.arange(mask_BT.shape[0], device=mask_BT.device), last_B]

    def own_classifier(self, network: nn.Module) -> list[nn.Module]:
        return [network.get_output_embeddings()]  # type: ignore[operator]

    def use_letters(self, letter_ids: list[int], letters: list[str]) -> None:
        """Take the letters' rows of the LM head as this backbone's head."""
        self.letter_ids = letter_ids
        output = self.network.get_output_embeddings()  # type: ignore[operator]
        bias = getattr(output, "bias", None)
        self.head = Head(
            output.weight.detach()[letter_ids].clone(), None if bias is None else bias.detach()[letter_ids].clone(), letters
        )

    def with_head(self, network: nn.Module, head: Head) -> nn.Module:
        assert self.letter_ids is not None, "use_letters comes first"
        output = network.get_output_embeddings()  # type: ignore[operator]
        weight, bias = output.weight.detach(), getattr(output, "bias", None)
        same_bias = head.bias_C is None or (bias is not None and torch.equal(bias[self.letter_ids], head.bias_C))
        if torch.equal(weight[self.letter_ids], head.weight_CF) and same_bias:
            return network.eval()  # the LM head as it is, tied or not
        if head.bias_C is not None and bias is None:
            raise CheckpointError("This LM head has no bias, so that member heads must have none.", "Use task.head: checkpoint.")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.weight[self.letter_ids] = head.weight_CF
            if bias is not None:
                linear.bias.copy_(bias)
                if head.bias_C is not None:
                    linear.bias[self.letter_ids] = head.bias_C
        network.config.tie_word_embeddings = False  # type: ignore[union-attr]  # a member's head is no embedding any more
        network.set_output_embeddings(linear.requires_grad_(False))  # type: ignore[operator]
        return network.eval()

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        mask_BT = inputs["attention_mask"]
        position_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
        out = model(input_ids=inputs["input_ids"], attention_mask=mask_BT, position_ids=position_BT, use_cache=False)
        last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)
        return out.logits[torch.arange(mask_BT.shape[0], device=mask_BT.device), last_B][:, self.letter_ids]

    def save_config(self, folder: Path, classes: list[str]) -> None:
        self.network.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
        self.tokenizer.save_pretrained(folder)

    def save(self, model: nn.Module, folder: Path, classes: list[str], writing: Writing | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_transformers(model, folder, writing or Writing())
        self.tokenizer.save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()


def check_pooling(spec: ModelSpec) -> None:
    """Refuse a pooling that is not what a causal language model does.

    Raises:
        CheckpointError: `model.pooling` is cls or mean.
    """
    if spec.pooling in ("cls", "mean"):
        raise CheckpointError(
            f"model.pooling is '{spec.pooling}', but multiple choice reads the last token.",
            "Remove model.pooling, or write native.",
        )


def load_causal_lm(location: Location, spec: ModelSpec) -> CausalLM:
    """Open a causal language model.

    Raises:
        CheckpointError: not found, not reachable, pickled weights only, weights are missing, no causal LM, or another pooling is
            asked for.
    """
    check_pooling(spec)
    arguments: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    name = str(location.path) if location.path else location.name
    try:
        config = AutoConfig.from_pretrained(name, **arguments)
        network, missing = _open(AutoModelForCausalLM, name, spec, config, arguments)
        tokenizer = load_tokenizer(name, spec)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        raise CheckpointError(
            f"transformers cannot open '{spec.name}' as a causal language model: {first}",
            "Check model.name, or name a local folder with config.json and safetensors.",
        ) from error
    require_encoder(network, missing, spec.name)
    tokenizer.padding_side = "left"
    opened = CausalLM(network, spec, None, tokenizer)
    opened.absent = frozenset(missing)
    if made_up := made_up_layers(network, missing):
        opened.notes.append(
            f"The checkpoint has no weights for {', '.join(made_up)} (its LM head): they are random, and stay so with "
            "task.head: auto. Write task.head: new."
        )
    return opened
