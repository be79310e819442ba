"""Which layers a method works on: `method.targets`, `exclude` and `last_blocks`."""

from __future__ import annotations

import re

from torch import nn

from sve_cli.backbone.linears import LinearView, require_view, unsupported_reason, view_of
from sve_cli.errors import CheckpointError, SveError
from sve_cli.recipe.spec import MethodSpec
from sve_cli.registry import nearest

_BLOCK = re.compile(r"^((?:.*?\.)?blocks\.\d+|(?:.*?\.)?[A-Za-z_]*\d*\.\d+)(?=\.)")
SELECTORS = ("auto", "attention", "mlp", "all-linear")  # what `targets` may say instead of naming layers
_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_MLP = {"mlp", "ffn", "ff", "feed_forward", "feedforward"}
_QUERIES = {"q", "k", "v", "kv", "qk", "qkv", "query", "key", "value", "query_key_value"}
_OUTPUTS = {"o", "wo", "o_proj", "o_lin", "out", "out_proj", "out_lin", "output", "proj", "dense"}
_ROUTER = re.compile(r"(^|\.)(router|gate)$")  # mixture-of-experts routers choose experts; they are no features


def block_of(name: str) -> str | None:
    """The repeated block a layer belongs to ('encoder.layer.3', 'stages.0.blocks.1', 'layer2.0'); None outside of blocks."""
    match = _BLOCK.match(name)
    return match.group(1) if match else None


def select_targets(network: nn.Module, spec: MethodSpec) -> list[LinearView]:
    """The targeted layers in network order; tied modules once. `auto` is every matrix in a network without repeated blocks.

    Raises:
        CheckpointError: a layer asked for is not supported, or nothing is left.
        SveError: a name or regular expression matches nothing, `targets` is `attention` and the network has none, or
            `last_blocks` is set and there are no blocks, or fewer.
    """
    modules = dict(network.named_modules())  # named_modules already visits a shared module once
    inside_mha = _inside_mha(modules)
    names = _narrowed(_chosen(modules, spec, inside_mha), modules, spec)
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


def has_attention(network: nn.Module, spec: MethodSpec) -> bool:
    """Whether `targets: attention` would find a layer, under the recipe's `exclude` and `last_blocks`.

    Raises:
        SveError: a name or regular expression of `exclude` matches nothing, or `last_blocks` is set and there are
            no blocks, or fewer.
    """
    modules = dict(network.named_modules())
    auto = _auto(modules, _inside_mha(modules))
    return bool(_narrowed([n for n in auto if _is_attention(n, auto)], modules, spec))


def _inside_mha(modules: dict[str, nn.Module]) -> set[str]:
    return {f"{n}.{c}" for n, m in modules.items() if isinstance(m, nn.MultiheadAttention) for c, _ in m.named_modules()}


def _narrowed(names: list[str], modules: dict[str, nn.Module], spec: MethodSpec) -> list[str]:
    """`names` without `exclude` and outside of `last_blocks`."""
    excluded = {n for pattern in spec.exclude for n in _matches(pattern, list(modules), "method.exclude")}
    names = [n for n in names if n not in excluded]
    if spec.last_blocks is not None:
        blocks = list(dict.fromkeys(b for n in modules if view_of(n, modules[n]) and (b := block_of(n))))
        if not blocks:
            raise SveError("method.last_blocks is set, but this network has no repeated blocks.", "Remove last_blocks.")
        if spec.last_blocks > len(blocks):
            count = f"{len(blocks)} block{'' if len(blocks) == 1 else 's'}"
            raise SveError(
                f"method.last_blocks is {spec.last_blocks}, but this network has {count}.",
                f"Write 1 to {len(blocks)}, or null for all.",
            )
        keep = set(blocks[-spec.last_blocks :])
        names = [n for n in names if block_of(n) in keep]
    return names


def _auto(modules: dict[str, nn.Module], inside_mha: set[str]) -> list[str]:
    """The linear layers of the blocks; their convolutions where there is none; without blocks, every matrix."""
    usable = [n for n, m in modules.items() if view_of(n, m) and not _ROUTER.search(n) and n not in inside_mha]
    if not any(block_of(n) for n, m in modules.items() if view_of(n, m) or unsupported_reason(m)):  # VGG, DenseNet, Inception
        return usable
    usable = [n for n in usable if block_of(n)]
    linear = [n for n in usable if not isinstance(modules[n], nn.Conv2d)]
    return linear or usable


def _is_attention(name: str, auto: list[str]) -> bool:
    """Whether a layer of `auto` belongs to attention, by its path inside its block.

    It does below a component that says attention (`self_attn`, `attention`, `SelfAttention`), unless an MLP follows it
    (`attn_block.mlp.fc1`). Without such a component, it does when it is a query, key or value layer, or the output layer
    beside one.
    """
    block = block_of(name)
    path = name[len(block) + 1 if block else 0 :].split(".")
    for part in reversed(path):
        if part.lower() in _MLP:
            return False
        if _ATTENTION.search(part):
            return True
    parent = name.rpartition(".")[0]
    return _is_query(path[-1]) or (
        path[-1].lower() in _OUTPUTS and any(n.rpartition(".")[0] == parent and _is_query(n.rpartition(".")[2]) for n in auto)
    )


def _is_query(leaf: str) -> bool:
    """A query, key or value projection, apart or fused: 'q_proj', 'Wqkv', 'k_lin', 'query'."""
    plain = re.sub(r"^w(?=[qkv])|_(proj|lin)$", "", leaf.lower())
    return plain in _QUERIES


def _chosen(modules: dict[str, nn.Module], spec: MethodSpec, inside_mha: set[str]) -> list[str]:
    if spec.targets in ("auto", "attention", "mlp"):
        auto = _auto(modules, inside_mha)
        if spec.targets == "auto" or not auto:
            return auto
        names = [n for n in auto if _is_attention(n, auto) == (spec.targets == "attention")]
        if not names:
            missing = "no attention layer that can be a target" if spec.targets == "attention" else "no layer beside its attention"
            raise SveError(f"method.targets is '{spec.targets}', but this network has {missing}.", "Use method.targets: auto.")
        return names
    matrices = [n for n, m in modules.items() if view_of(n, m) is not None]
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
