"""What the card of a LoRA adapter says: what it is, what is lost, how to open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sve_cli.backbone import Backbone, locate


def loads_with(backbone: Backbone) -> str:
    """The public call that opens an adapter on its checkpoint."""
    return f"peft.PeftModel.from_pretrained({_base(backbone)}, 'FOLDER')"


def _base(backbone: Backbone) -> str:
    if backbone.library == "timm":
        return "timm.create_model(BASE, ...)"
    return f"transformers.{_auto(backbone)}.from_pretrained(BASE)"


def _auto(backbone: Backbone) -> str:
    if "SentenceTransformer" in backbone.loads_with:
        return "AutoModel"
    return "AutoModelForCausalLM" if "AutoModelForCausalLM" in backbone.loads_with else "AutoModelForSequenceClassification"


def what_it_is(member: int, n_members: int, facts: Mapping[str, Any]) -> str:
    """What the adapter is, and is not."""
    energy = facts["captured_energy"]
    lost = (
        "It holds all of them, so that nothing is lost but rounding."
        if energy["least"] > 1 - 1e-9
        else f"It holds {energy['mean']:.1%} of Σ Δσ² in the mean over layers ({energy['least']:.1%} in the worst); the rest is "
        "lost, and the certificate below says what that costs."
    )
    needs = [
        *(["lora_bias"] if facts["lora_bias"] else []),
        *(["modules_to_save"] if facts["modules_to_save"] else []),
        *([] if facts["one_rank"] else ["rank_pattern"]),
    ]
    servers = f" It uses peft's {', '.join(needs)}, which not every server supports (see docs/export_lora.md)." if needs else ""
    return (
        f"Member {member} of an ensemble of {n_members} as a LoRA adapter of rank {facts['rank']} on the unchanged checkpoint: the "
        f"largest directions of its change of each layer. {lost} One member is not the ensemble: the ensemble's accuracy, "
        f"calibration and uncertainty come from averaging the probabilities of all members.{servers}"
    )


def usage(backbone: Backbone) -> str:
    """Lines of Python that open the adapter and predict, without this tool."""
    local = locate(backbone.spec).path is not None
    base = "PATH OF THE CHECKPOINT" if local else backbone.spec.name
    if backbone.library == "timm":
        return f"""import json, timm, torch
from peft import PeftModel
from PIL import Image
config = json.load(open("FOLDER/config.json"))
arguments = {{name: value for name, value in config["model_args"].items() if name != "num_classes"}}
base = timm.create_model("{"local-dir:" if local else ""}{base}", pretrained=True, **arguments)
base.reset_classifier(config["num_classes"])
model = PeftModel.from_pretrained(base, "FOLDER").eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"]), is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0))
print(config["label_names"][int(logits.argmax())])"""
    auto = _auto(backbone)
    revision = "" if local or backbone.spec.revision is None else f', revision="{backbone.spec.revision}"'
    mismatched = ", ignore_mismatched_sizes=True" if "Sequence" in auto else ""
    opened = f"""import torch
from peft import PeftModel
from transformers import AutoConfig, {auto}, AutoTokenizer
config = AutoConfig.from_pretrained("FOLDER")
base = {auto}.from_pretrained("{base}"{revision}, config=config{mismatched})
model = PeftModel.from_pretrained(base, "FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
    if auto == "AutoModelForCausalLM":
        return (
            opened
            + """inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
with torch.inference_mode():
    logits = model(**inputs).logits[0, -1]  # compare the entries of the letters' tokens"""
        )
    inputs = 'inputs = tokenizer(["a text"], truncation=True, return_tensors="pt")\n'
    if auto == "AutoModel":
        pooled = {"cls": "hidden[:, 0]", "last": "hidden[:, -1]", "mean": "hidden.mean(1)"}[backbone.spec.pooling]
        return (
            opened
            + inputs
            + f"""from safetensors.torch import load_file
head = load_file("FOLDER/2_Dense/model.safetensors")  # peft has no place for the head of a pooled encoder
with torch.inference_mode():
    hidden = model(**inputs).last_hidden_state
    logits = torch.nn.functional.linear({pooled}, head["linear.weight"], head.get("linear.bias"))  # one text: no padding
print(config.id2label[int(logits.argmax())])"""
        )
    return (
        opened
        + inputs
        + """with torch.inference_mode():
    logits = model(**inputs).logits
print(config.id2label[int(logits.argmax())])"""
    )
