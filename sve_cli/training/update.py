"""What happens to the gradients and parameters of a step besides the optimiser: clipping and weight decay.

Shapes: M members, P numbers a member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sve_cli.ensemble import Ensemble, ParameterGroup
from sve_cli.recipe.spec import TrainSpec


def clip_members(ensemble: Ensemble, members: Sequence[int], most: float) -> None:
    """Scale each member's gradient down to a norm of `most`; what members share counts in every member's norm."""
    own = list(members)
    held = [(g, p.grad) for g in ensemble.groups for p in g.parameters.values() if p.grad is not None]
    if not held:
        return
    device = held[0][1].device
    stacked = [grad for g, grad in held if g.stacked]
    shared = [grad for g, grad in held if not g.stacked]
    squared_M = torch.zeros(len(own), dtype=torch.float64, device=device)
    if stacked:  # hundreds of small tensors: copied into one, they cost one pass and not one each
        together_MP = torch.cat([grad.reshape(len(grad), -1) for grad in stacked], 1)
        own_MP = together_MP if own == list(range(len(together_MP))) else together_MP[own]
        squared_M += torch.linalg.vector_norm(own_MP, dim=1, dtype=torch.float64) ** 2
    if shared:
        squared_M += torch.stack(torch._foreach_norm(shared)).double().square().sum()
    factor_M = (most / (squared_M.sqrt() + 1e-12)).clamp(max=1.0).float()
    if not (factor_M < 1).any():  # times 1 is what it was
        return
    for grad in stacked:
        whole_M = torch.ones(len(grad), dtype=grad.dtype, device=grad.device)
        whole_M[own] = factor_M.to(grad.dtype)
        grad.mul_(whole_M.reshape(-1, *[1] * (grad.ndim - 1)))
    for grad in shared:
        grad.mul_(factor_M.mean())  # one member: its own; several that share it: between theirs


def decay_members(
    ensemble: Ensemble, members: Sequence[int], spec: TrainSpec, base_lr: Callable[[ParameterGroup], float], factor: float
) -> None:
    """Decoupled weight decay of these members toward each parameter's origin (zero unless the method names one)."""
    for group in ensemble.groups:
        decay = spec.head_weight_decay if group.role == "head" else spec.weight_decay
        if not decay:
            continue
        rate = decay * base_lr(group) * factor
        for name, parameter in group.parameters.items():
            if parameter.grad is None:  # not part of this round
                continue
            with torch.no_grad():
                origin = ensemble.decay_origins.get(name, torch.zeros(())).to(parameter.device)
                if group.stacked and len(members) < len(parameter):
                    parameter[list(members)] += rate * (origin - parameter[list(members)])
                else:
                    parameter.add_(origin - parameter, alpha=rate)
