"""Singular Value Ensembles: make a pretrained checkpoint know what it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sve_cli.workflows.serving import LoadedEnsemble
    from sve_cli.workflows.serving_distilled import LoadedDistilled

__version__ = "0.1.0"


def load(
    path: str | Path, base: str | Path | None = None, device: Any = None, trust_remote_code: bool = False
) -> LoadedEnsemble | LoadedDistilled:
    """Open a run's, an adapter's or a distilled network's folder, or an adapter on the hub, as an object with `predict`.

    Args:
        base: adapters: the checkpoint they belong to, by path or hub id; None: the one the adapter names.
        device: where to compute, as in "cpu" or "cuda:1"; None: the GPU if there is one.
        trust_remote_code: adapters: let the checkpoint that the adapter names run code of its own, if the adapter asks for it.

    Raises:
        SveError: nothing there that can be opened, or it is damaged, or of another checkpoint.
    """
    from sve_cli.workflows.serving import load as load_ensemble  # not above: `import sve_cli` loads no torch

    return load_ensemble(path, base, device, trust_remote_code=trust_remote_code)
