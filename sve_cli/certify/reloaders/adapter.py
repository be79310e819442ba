"""Reloader `adapter`: `sve_cli.load`, the one public loader of adapters. Members one by one, merged.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEEDS_SVE = True


def answer(folder: Path, asked: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Logits (M, N, C) of every member, and what was found."""
    import sve_cli

    ensemble: Any = sve_cli.load(folder, base=asked.request["base"], device="cpu")
    inputs: Any = asked.request.get("items") or asked.request.get("texts") or asked.request.get("images")
    if asked.request.get("pairs"):
        inputs = list(zip(asked.request["texts"], asked.request["pairs"], strict=True))
    logits_MNC = torch.from_numpy(ensemble.logits(inputs, execution="merged"))
    classes = list(ensemble.classes)
    if asked.kind == "prompts":
        classes = [str(t) for t in ensemble.tokenizer.convert_ids_to_tokens(asked.letter_ids)]
    versions = {"torch": torch.__version__, "sve_cli": sve_cli.__version__}
    return {"logits": logits_MNC}, {"classes": classes, "missing": [], "versions": versions}
