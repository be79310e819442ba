"""What a folder must hold so that its library opens it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sve_cli.errors import CheckFailed

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # formats that can run code when opened
REPORT = "This is a fault of the exporter; please report it."
TIMM_INPUT_KEYS = ("input_size", "interpolation", "crop_pct", "mean", "std")  # what images are prepared with


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder with a file whose format can run code when opened.

    Raises:
        CheckFailed: naming it.
    """
    pickled = sorted(p.name for p in folder.rglob("*") if p.suffix in PICKLED)
    if pickled:
        what = f"holds a pickled file, '{pickled[0]}', which can run code when opened"
        raise CheckFailed(f"The export '{folder.name}' {what}.", REPORT)


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that lacks one of these files.

    Raises:
        CheckFailed: naming those that are missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckFailed(f"The export '{folder.name}' lacks {', '.join(missing)}.", REPORT)


def require_complete(folder: Path, text: bool) -> None:
    """Check that a folder holds what its library needs: weights, config, label names, tokenizer or image preparation.

    Raises:
        CheckFailed: naming what is missing, or a pickled file.
    """
    refuse_pickled(folder)
    require_files(folder, ["config.json"])
    missing = [] if any(folder.glob("*.safetensors")) else ["weights (.safetensors)"]
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
