"""What an exporter writes: one folder per artifact, complete in itself, with a card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckFailed

CARD = "README.md"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # formats that can run code when opened
REPORT = "This is a fault of the exporter; please report it."
TIMM_INPUT_KEYS = ("input_size", "interpolation", "crop_pct", "mean", "std")  # what images are prepared with


@dataclass(frozen=True)
class Artifact:
    """One exported checkpoint.

    Attributes:
        kind: the export target, "merged" or "averaged".
        path: its folder.
        member: the member it claims to be; None: none in particular.
        loads_with: the public call that opens it.
    """

    kind: str
    path: Path
    member: int | None
    loads_with: str


def write_checkpoint(ensemble: Ensemble, model: nn.Module, artifact: Artifact, what: str) -> Artifact:
    """Write a plain network as a complete checkpoint, with its card."""
    ensemble.backbone.save(model, artifact.path, ensemble.classes)
    path = artifact.path / CARD
    path.write_text(card(ensemble, artifact, what), encoding="utf-8")
    for written in artifact.path.rglob("*"):
        if written.is_file():
            shutil.copymode(path, written)  # safetensors makes files that only their owner reads
    return artifact


def card(ensemble: Ensemble, artifact: Artifact, what: str) -> str:
    """The model card: what this is, what it is not, how to load it."""
    name = ensemble.backbone.spec.name
    local = Path(name).expanduser().exists()
    base = Path(name).name if local else name  # where a folder lies here is nobody else's business
    metadata = f"library_name: {ensemble.backbone.library}" + ("" if local or "/" not in name else f"\nbase_model: {name}")
    shown = ", ".join(ensemble.classes[:20]) + (f", … ({len(ensemble.classes)} in all)" if len(ensemble.classes) > 20 else "")
    code = usage(ensemble.backbone)
    return f"""---
{metadata}
---

# {artifact.path.name}

{what}

Made from the checkpoint `{base}` with {ensemble.n_members} members. Classes: {shown}.

## How to load it

```python
{code}
```
"""


def usage(backbone: Backbone) -> str:
    """Lines of Python that open an exported folder and predict, without this tool."""
    if backbone.library == "timm":
        return """import timm, torch
from PIL import Image
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0))
print(model.pretrained_cfg["label_names"][int(logits.argmax())])"""
    if "SentenceTransformer" in backbone.loads_with:
        return """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")  # its output are the logits; config.json names the classes (id2label)
logits = model.encode(["a text"])
print(model[0].auto_model.config.id2label[int(logits[0].argmax())])"""
    causal = "AutoModelForCausalLM" in backbone.loads_with
    auto = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
    opened = f"""import torch
from transformers import {auto}, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER").eval()
"""
    if causal:
        return (
            opened
            + """inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
with torch.inference_mode():
    logits = model(**inputs).logits[0, -1]  # compare the entries of the letters' tokens"""
        )
    return (
        opened
        + """inputs = tokenizer(["a text"], truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits
print(model.config.id2label[int(logits.argmax())])"""
    )


def require_complete(folder: Path, text: bool) -> None:
    """Check that a folder holds what its library needs: weights, config, label names, tokenizer or image preparation.

    Raises:
        CheckFailed: naming what is missing, or a pickled file.
    """
    pickled = [p.name for p in folder.rglob("*") if p.suffix in PICKLED]
    if pickled:
        raise CheckFailed(f"The export holds a pickled file, '{pickled[0]}', which can run code when opened.")
    missing = [] if any(folder.glob("*.safetensors")) else ["weights (.safetensors)"]
    if not (folder / "config.json").is_file():
        raise CheckFailed(f"The export '{folder.name}' lacks config.json.", REPORT)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if text:
        names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
        missing += [] if any((folder / n).is_file() for n in names) else ["a tokenizer"]
        missing += [] if (folder / "tokenizer_config.json").is_file() else ["tokenizer_config.json"]
    else:
        missing += [f"pretrained_cfg.{k}" for k in TIMM_INPUT_KEYS if not config.get("pretrained_cfg", {}).get(k)]
        missing += [] if config.get("label_names") else ["label_names"]
    if (folder / "modules.json").is_file():
        parts = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
        missing += [n for n in parts if not (folder / n).is_file()]
    if missing:
        raise CheckFailed(f"The export '{folder.name}' lacks {', '.join(missing)}.", REPORT)
