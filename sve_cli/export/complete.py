"""What a folder must hold so that its library opens it."""

from __future__ import annotations

import json
from pathlib import Path

from sve_cli.errors import CheckFailed

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # formats that can run code when opened
REPORT = "This is a fault of the exporter; please report it."
TIMM_INPUT_KEYS = ("input_size", "interpolation", "crop_pct", "mean", "std")  # what images are prepared with


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
