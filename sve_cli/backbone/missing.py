"""Weights that a transformers checkpoint lacks, which the library draws at random: which of them are harmless, which are not."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sve_cli.backbone.targets import block_of
from sve_cli.errors import CheckpointError


def require_encoder(network: nn.Module, missing: Iterable[str], name: str, bare: bool = False) -> None:
    """Refuse a checkpoint without weights of the encoder itself: its random layers would pass for pretrained ones.

    What stands around the encoder may be missing: a classifier, an LM head, and a pooler, which encoders are often saved without.

    Args:
        bare: `network` is the encoder, not a classifier around one.

    Raises:
        CheckpointError: naming the first few.
    """
    lost = [key for key in _learned(network, missing) if _inside(network, key, bare)]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise CheckpointError(
            f"The checkpoint '{name}' lacks weights of its network: {', '.join(lost[:3])}{more}.",
            "Fetch or save it again; if it is complete, its config.json describes another network.",
        )


def made_up_layers(network: nn.Module, missing: Iterable[str]) -> list[str]:
    """The modules of `network` whose weights are missing."""
    return sorted({key.rpartition(".")[0] for key in _learned(network, missing)})


def _learned(network: nn.Module, missing: Iterable[str]) -> list[str]:
    """Those of the missing that are parameters, in order: buffers (positions, masks) are computed."""
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return sorted(parameters.intersection(missing))


def _inside(network: nn.Module, key: str, bare: bool) -> bool:
    prefix = "" if bare else f"{getattr(network, 'base_model_prefix', '')}."
    if not bare and not hasattr(network, prefix[:-1] or "."):
        return block_of(key) is not None  # the library does not say which part is the encoder
    return key.startswith(prefix) and not any("pool" in part for part in key.removeprefix(prefix).split("."))
