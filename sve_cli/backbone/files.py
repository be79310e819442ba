"""Which files of a checkpoint's folder its library reads the weights from, and which tensors are in them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sve_cli.backbone.weights import INDEX, WEIGHTS
from sve_cli.errors import CheckpointError


def tensor_files(folder: Path, library: str = "transformers") -> dict[str, Path]:
    """Tensor name -> file, of the files that the library itself reads; {} where it reads none of them.

    Raises:
        CheckpointError: a file is damaged or missing.
    """
    if (folder / WEIGHTS).is_file():
        return _names(folder / WEIGHTS)
    if library == "timm":
        return _names(_instead(folder))
    return shards(folder)


def shards(folder: Path) -> dict[str, Path]:
    """Tensor name -> shard, by the index of a folder without model.safetensors; {} where there is none.

    Raises:
        CheckpointError: the index cannot be read, or names a file that is not there.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return {}
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(index, error) from error
    places = document.get("weight_map") if isinstance(document, dict) else None
    named = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    if not places or not named or not isinstance(document.get("metadata"), dict):
        raise damaged(index, "it is no index of weights")
    for file in sorted(set(places.values())):
        if not (folder / file).is_file():
            raise damaged(folder / file, f"there is no such file, but {INDEX} names it")
    return {name: folder / file for name, file in places.items()}


def damaged(file: Path, why: object) -> CheckpointError:
    """The error for a file that is not what was saved."""
    return CheckpointError(f"Cannot read '{file}' ({why}).", "Fetch the checkpoint again.")


def _instead(folder: Path) -> Path | None:
    """What timm reads where there is no model.safetensors: a pickled file (None), or the first file of weights."""
    if any((folder / name).is_file() for name in ("pytorch_model.bin", "pytorch_model.pth", "model.pth")):
        return None
    clip = folder / "open_clip_model.safetensors"
    return clip if clip.is_file() else next(iter(sorted(folder.glob("*.safetensors"))), None)


def _names(file: Path | None) -> dict[str, Path]:
    if file is None:
        return {}
    try:
        with safe_open(file, framework="pt") as f:
            return dict.fromkeys(f.keys(), file)
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from error
