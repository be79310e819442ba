"""Which library opens a checkpoint, and where it lies. A local path always wins and touches no network."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import ModelSpec

Library = Literal["timm", "transformers"]


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is. `path`: local folder; `file`: a bare timm weight file; `name`: what the library is asked for."""

    library: Library
    name: str
    path: Path | None = None
    file: Path | None = None


def locate(spec: ModelSpec) -> Location:
    """Decide from `model.name` and `model.source`, without any network.

    Raises:
        CheckpointError: a path that does not exist, or a folder that is no checkpoint.
    """
    name = spec.name
    forced_timm = name.startswith("timm:") or spec.source == "timm"
    name = name.removeprefix("timm:")
    # os.path, not pathlib: that fails where a home is nobody's or a name is too long to be a file's.
    architecture, at, file = name.partition("@")
    if at and os.path.isfile(file := os.path.expanduser(file)):
        return _bare_file(architecture, Path(file))
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return _folder(path, spec)
    if os.path.isfile(path):
        raise CheckpointError(
            f"'{path}' is a single file, and a file does not say which architecture it belongs to.",
            f"Write model.name as 'timm:ARCHITECTURE@{path}', or name the folder that holds config.json too.",
        )
    if at and architecture and Path(file).suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError(f"There is no file '{file}'.", "Check model.name: timm:ARCHITECTURE@FILE.safetensors.")
    embedded = Path(str(files("sve_cli") / "assets" / name))
    if "/" not in name and embedded.is_dir() and (embedded / "config.json").is_file():
        return _folder(embedded, spec)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"There is no checkpoint at '{name}'.", "Check model.name: a local folder with config.json, or a hub id."
        )
    if forced_timm or name.startswith("hf-hub:") or (spec.source == "auto" and "/" not in name and _is_timm(name)):
        return Location("timm", name)
    return Location("transformers", name)


def _bare_file(architecture: str, file: Path) -> Location:
    if file.suffix != ".safetensors":
        raise CheckpointError(f"'{file}' is not a safetensors file; other formats can run code when opened.", "Convert it first.")
    return Location("timm", architecture, file=file)


def _folder(path: Path, spec: ModelSpec) -> Location:
    config_path = path / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"The folder '{path}' has no config.json.", "Name a folder saved by timm or transformers.")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{config_path}' is not JSON ({error}).") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture", ""), str):
        raise CheckpointError(
            f"'{config_path}' describes no network: it is no object, or its architecture is no name.", "Fetch the checkpoint again."
        )
    if not any(path.glob("*.safetensors")) and not spec.random_init:
        raise CheckpointError(
            f"The folder '{path}' has no .safetensors weights; pickled weights are not opened.",
            "Save the checkpoint again with safetensors.",
        )
    library: Library = "timm" if "architecture" in config else "transformers"
    if spec.source not in ("auto", library):
        raise CheckpointError(
            f"'{path}' is a {library} folder, but model.source says {spec.source}.", f"Write model.source: {library}."
        )
    if library == "transformers":
        refuse_revision(spec, "ORGANISATION/NAME")
    return Location(library, str(path), path=path)


def refuse_revision(spec: ModelSpec, form: str) -> None:
    """Refuse `model.revision` where there is no repository that it could be asked of.

    Raises:
        CheckpointError: it is set; `form`: how a hub id is written.
    """
    if spec.revision is not None:
        raise CheckpointError(
            f"model.revision is '{spec.revision}', but '{spec.name}' is not a hub id that a revision can be asked of.",
            f"Write model.name: {form}, or remove model.revision.",
        )


def _is_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name.partition(".")[0]))
