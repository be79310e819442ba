"""The text of an artifact's card: what it is, what it is not, how to load it. The rest is in `card_metadata`."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

from sve_cli.backbone import Backbone
from sve_cli.ensemble import Ensemble

_PACKAGES = {
    "PIL": "pillow",
    "sentence_transformers": "sentence-transformers",
}  # where a package is called otherwise than what it brings


def card(ensemble: Ensemble, title: str, what: str, code: str | None = None) -> str:
    """The model card: what this is, what it is not, how to load it (`code`; default: by its library)."""
    shown = ", ".join(map(_as_text, ensemble.classes[:20]))
    shown += f", … ({len(ensemble.classes)} in all)" if len(ensemble.classes) > 20 else ""
    code = code or usage(ensemble.backbone)
    return f"""# {title}

{what}

Made from the checkpoint `{base_name(ensemble.backbone.spec.name)}` with {ensemble.n_members} members. Classes: {shown}.

## How to load it

```python
{needs(code)}{code}
```
"""


def needs(code: str) -> str:
    """A comment that installs what lines of Python import; nothing where they import this package, which brings what it needs."""
    tree = ast.parse(code)
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {module.partition(".")[0] for module in modules}
    if 'return_tensors="pt"' in code:
        found.add("torch")
    if "sve_cli" in found:
        return ""
    packages = {_PACKAGES.get(name, name) for name in found - set(sys.stdlib_module_names)}
    return f"# pip install {' '.join(sorted(packages))}\n" if packages else ""


def _as_text(name: str) -> str:
    """A class name on one line, without a meaning in Markdown: names come with the data, and may hold anything."""
    return re.sub(r"([\\`*\[\]|~#$<>])", r"\\\1", " ".join(name.split()))


def base_name(name: str) -> str:
    """What a checkpoint is called: a hub id as it is, of a local path the last part, as its place is nobody else's business."""
    library, bare = ("timm:", name.removeprefix("timm:")) if name.startswith("timm:") else ("", name)
    architecture, at, file = bare.partition("@")
    if at:  # timm: ARCHITECTURE@weights
        return f"{library}{architecture}@{Path(file).name}"
    return library + Path(bare).name if os.path.exists(os.path.expanduser(bare)) else name


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
