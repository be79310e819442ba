"""Which layers a method works on: `method.targets`, `exclude` and `last_blocks`."""

from __future__ import annotations

import re

from torch import nn

from sve_cli.backbone.linears import LinearView, require_view, unsupported_reason, view_of
from sve_cli.errors import CheckpointError, SveError
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import nearest

_BLOCK = re.compile(r"^((?:.*?\.)?blocks\.\d+|(?:.*?\.)?[A-Za-z_]*\d*\.\d+)(?=\.)")
_ROUTER = re.compile(r"(^|\.)(router|gate)$")  # mixture-of-experts routers choose experts; they are no features


def block_of(name: str) -> str | None:
    """The repeated block a layer belongs to ('encoder.layer.3', 'stages.0.blocks.1', 'layer2.0'); None outside of blocks."""
    match = _BLOCK.match(name)
    return match.group(1) if match else None


def select_targets(network: nn.Module, spec: MethodSpec) -> list[LinearView]:
    """The targeted layers in network order; tied modules once.

    Raises:
        CheckpointError: a layer asked for is not supported, or nothing is left.
        SveError: a name or regular expression matches nothing.
    """
    modules = dict(network.named_modules())  # named_modules already visits a shared module once
    inside_mha = {f"{n}.{c}" for n, m in modules.items() if isinstance(m, nn.MultiheadAttention) for c, _ in m.named_modules()}
    names = _chosen(modules, spec, inside_mha)
    excluded = {n for pattern in spec.exclude for n in _matches(pattern, list(modules), "method.exclude")}
    names = [n for n in names if n not in excluded]
    if spec.last_blocks is not None:
        blocks = list(dict.fromkeys(b for n in modules if view_of(n, modules[n]) and (b := block_of(n))))
        if not blocks:
            raise SveError("method.last_blocks is set, but this network has no repeated blocks.", "Remove last_blocks.")
        keep = set(blocks[-spec.last_blocks :])
        names = [n for n in names if block_of(n) in keep]
    for name in names:
        if name in inside_mha:
            raise CheckpointError(
                f"The target '{name}' lies inside torch.nn.MultiheadAttention, which reads its weights directly.",
                "Leave it out with method.exclude.",
            )
    views = [require_view(name, modules[name]) for name in names]
    if not views:
        raise CheckpointError("No layer is left to train.", "Loosen method.targets, method.exclude or method.last_blocks.")
    return views


def _chosen(modules: dict[str, nn.Module], spec: MethodSpec, inside_mha: set[str]) -> list[str]:
    matrices = [n for n, m in modules.items() if view_of(n, m) is not None]
    if spec.targets == "auto":
        usable = [n for n in matrices if block_of(n) and not _ROUTER.search(n) and n not in inside_mha]
        linear = [n for n in usable if not isinstance(modules[n], nn.Conv2d)]
        return linear or usable
    if spec.targets == "all-linear":
        refused = {n: r for n, m in modules.items() if (r := unsupported_reason(m))}
        if refused and not matrices:
            name, reason = next(iter(refused.items()))
            raise CheckpointError(f"No layer can be a target: '{name}' is {reason}.", "")
        return [n for n in matrices if n not in inside_mha]
    patterns = [spec.targets] if isinstance(spec.targets, str) else spec.targets
    layers = [n for n, m in modules.items() if view_of(n, m) is not None or unsupported_reason(m)]
    wanted = {n for pattern in patterns for n in _matches(pattern, layers, "method.targets")}
    return [n for n in modules if n in wanted]


def _matches(pattern: str, names: list[str], key: str) -> list[str]:
    if pattern.startswith("re:"):
        try:
            regex = re.compile(pattern[3:])
        except re.error as error:
            raise SveError(f"{key}: '{pattern}' is not a regular expression ({error}).") from error
        found = [n for n in names if regex.search(n)]
    else:  # a full name, or the last part of it ('query', 'mlp.fc1')
        found = [n for n in names if n == pattern or n.endswith("." + pattern)]
    if not found:
        raise SveError(f"{key}: '{pattern}' matches no layer of this network.", nearest(pattern, _endings(names)))
    return found


def _endings(names: list[str]) -> list[str]:
    """The last two parts of every name, once: what the repeated blocks have in common."""
    ends = (".".join(n.split(".")[-2:]) for n in names if n)
    return list(dict.fromkeys(e for e in ends if not any(part.isdigit() for part in e.split("."))))
