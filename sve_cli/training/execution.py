"""Whether all members can compute in one pass: every layer's rows must then be blocks, one a member, in the members' order.

They are not in networks that put the positions first (Longformer, XLNet) or that compute something once for the whole batch
(DeBERTa's relative positions): there the members run one after another, which gives what their definition says.
Shapes: M members, B batch, K rows of a layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sve_cli.backbone import Inputs
from sve_cli.ensemble import Ensemble, MemberContext, MixedMembers, keyed_generator
from sve_cli.errors import CheckpointError
from sve_cli.recipe.spec import TrainSpec
from sve_cli.tasks.common import Encoded, tensor_to
from sve_cli.training.schedule import training_precision

TOLERANCE = 1e-4  # of a row's length: rows that differ by less, seen along a random direction, are equal
CANDIDATES = 64  # training rows among which two that differ are looked for


def runnable(spec: TrainSpec, ensemble: Ensemble, encoded: Encoded, device: torch.device, warn: Callable[[str], None]) -> TrainSpec:
    """The settings, with `member_execution: sequential` where the network cannot compute all members in one pass."""
    if spec.member_execution != "batched" or not (layer := mixing_layer(ensemble, encoded, device)):
        return spec
    warn(
        f"The rows that layer '{layer}' gets are not those of the batch, so the members run one after another "
        "(train.member_execution: sequential). Where method.exclude leaves such layers out, all run together."
    )
    return replace(spec, member_execution="sequential")


def path_gap(spec: TrainSpec, ensemble: Ensemble, encoded: Encoded, device: torch.device) -> float:
    """Largest difference between the logits as training computes them and the definition's, on one batch of these rows.

    As training does: in its precision, all members at once or one after another. Where every round trains one member (mc_dropout,
    deep_ensemble), no pass of training or prediction has more than one: the network may mix the rows of several.
    """
    inputs = tensor_to(encoded.batch(np.arange(min(32, len(encoded)))), device)
    dtype = training_precision(spec, device, ensemble.backbone.network)
    spec = runnable(spec, ensemble, encoded, device, lambda text: None)
    everyone = tuple(range(ensemble.n_members))
    together = spec.member_execution == "batched" and any(len(r.members) > 1 for r in ensemble.rounds())
    ensemble.set_training(False)
    gap = 0.0
    with torch.no_grad():
        for group in [everyone] if together else [(m,) for m in everyone]:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                trained_MBC = ensemble(inputs, group).logits_MBC.float()
            for m, logits_BC in zip(group, trained_MBC, strict=True):
                with ensemble.merged(m):
                    alone_BC = ensemble(inputs, members=[m]).logits_MBC[0].float()
                gap = max(gap, float((logits_BC - alone_BC).abs().max()))
    return gap


def mixing_layer(ensemble: Ensemble, encoded: Encoded, device: torch.device, members: Sequence[int] | None = None) -> str:
    """The first layer with one version a member whose rows are not one block a member; "" without any.

    Two passes of one row a member, of which the first member's alone differs between them: the others' blocks must be equal. And
    one of two rows a member, in which each layer must have twice as many rows. `members`: the first two tell what all do, for less.
    """
    own = [module for module in ensemble.network.modules() if isinstance(getattr(module, "context", None), MemberContext)]
    chosen = range(ensemble.n_members) if members is None else members
    m = len(chosen)
    pair = _two_rows(encoded)
    if m < 2 or not own or pair is None:
        return ""
    pair = tensor_to(pair, device)
    ensemble.set_training(False)

    def seen(rows: list[list[int]]) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        inputs = {key: value[torch.tensor(rows, device=value.device)] for key, value in pair.items()}
        with ExitStack() as stack, torch.no_grad():  # in float32 whatever training runs in: it is about the rows' places
            for module in own:
                stack.callback(module.register_forward_pre_hook(_look(_name(module), found)).remove)
            ensemble(inputs, chosen, per_member=True)
        return found

    try:
        passes = [seen([[0]] + [[1]] * (m - 1)), seen([[1]] * m), seen([[0, 1]] * m)]
    except MixedMembers as error:
        return error.layer
    if len({tuple(name for name, _ in found) for found in passes}) > 1:  # other layers for other inputs: routed by their values
        return passes[0][0][0]
    return next((a[0] for a, b, twice in zip(*passes, strict=True) if _mixed(a[1], b[1], twice[1], m)), "")


def check_all_called(ensemble: Ensemble) -> None:
    """Refuse a network that reads the weights of a target directly instead of calling the layer.

    Raises:
        CheckpointError: a target was never called in the forward passes so far.
    """
    silent = [view.name for view in ensemble.target_views() if view.name not in ensemble.context.called]
    if silent:
        raise CheckpointError(
            f"The network never calls its layer '{silent[0]}' ({len(silent)} such), so that the method has no effect there.",
            "Leave it out with method.exclude.",
        )


def _two_rows(encoded: Encoded) -> Inputs | None:
    """The first training row and the one that differs from it in most inputs (in its length too, where one does).

    The longer one first: the passes that are compared then both have padding, and so both go the masked way through attention.
    """
    best: tuple[int, Inputs] | None = None
    for other in range(1, min(len(encoded), CANDIDATES)):
        rows = np.array([0, other])
        inputs = encoded.batch(rows)
        differ = sum(not torch.equal(value[0], value[1]) for value in inputs.values())
        if differ and (best is None or differ > best[0]):
            best = (differ, inputs)
        if differ == len(inputs):
            break
    if best is None:
        return None
    mask_2T = best[1].get("attention_mask")
    swapped = mask_2T is not None and bool(mask_2T[1].sum() > mask_2T[0].sum())
    return {key: value.flip(0) for key, value in best[1].items()} if swapped else best[1]


def _name(module: nn.Module) -> str:
    return str(getattr(module, "name", None) or getattr(module, "view").name)  # noqa: B009 (its type is not known here)


def _look(name: str, found: list[tuple[str, Tensor]]) -> Callable[[nn.Module, Any], None]:
    """Keeps a number or two of each row of a layer's input: rows themselves would be the memory of a whole backward pass."""

    def look(module: nn.Module, args: Any) -> None:
        rows = args[0].detach().flatten(1).double()
        along = torch.randn(rows.shape[1], generator=keyed_generator(0, "probe", rows.shape[1])).to(rows)
        found.append((name, torch.stack([rows @ along, rows.norm(dim=1)]).cpu()))

    return look


def _mixed(first_2K: Tensor, other_2K: Tensor, twice_2K: Tensor, m: int) -> bool:
    """Whether the rows are anything but M equal blocks, of which only the first member's differs between the two passes."""
    n = first_2K.shape[1]
    if n % m or other_2K.shape[1] != n or twice_2K.shape[1] != 2 * n:
        return True
    changed_K = (first_2K - other_2K).abs().amax(0) > TOLERANCE * torch.maximum(first_2K[1], other_2K[1])
    return bool(changed_K[n // m :].any())
