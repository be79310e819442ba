"""What the live ensemble answers: members by their definition, the mean member, the untrained network.

Shapes: M members, N samples, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from sve_cli.backbone import Head
from sve_cli.backbone.weights import round_parameters
from sve_cli.ensemble import Ensemble, MemberLinear
from sve_cli.export.artifact import LiveOutputs
from sve_cli.methods.sve import SVELinear
from sve_cli.predictions import Predictions
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task, tensor_to

BATCH = 16


class Live:
    """The live object's answers on some samples, computed when asked for and kept."""

    def __init__(self, ensemble: Ensemble, task: Task, samples: Samples) -> None:
        self.ensemble = ensemble
        self.samples = samples
        self.encoded = task.encode(samples)
        self.device = ensemble.heads.weight_MCF.device
        self.member = cache(self._member)
        self.base_features = cache(self._base_features)
        ensemble.set_training(False)

    def _rows(self) -> list[np.ndarray]:
        return [np.arange(i, min(i + BATCH, len(self.samples))) for i in range(0, len(self.samples), BATCH)]

    def _member(self, m: int) -> np.ndarray:
        """Logits (N, C) of member m, merged by its definition into the live network."""
        with torch.inference_mode(), self.ensemble.merged(m):
            found = [self.ensemble(self._inputs(rows), members=[m]).logits_MBC[0] for rows in self._rows()]
        return torch.cat(found).float().cpu().numpy()

    def averaged(self) -> np.ndarray:
        """Logits (N, C) of the mean member: the arithmetic mean of the members' plain weights and heads.

        For singular values this is the mean Σ (a member's matrix is linear in it); no code is shared with `averaged_model`.
        """
        network, head = self._mean()
        return self._with_head(self._features(network), head)

    def rounded(self, m: int | None, trained: bool = True) -> np.ndarray:
        """Logits (N, C) of member m (None: the mean member) with every parameter rounded to bfloat16, computed in float32.

        Args:
            trained: False: of the untrained network with that head.
        """
        network, head = self._mean() if m is None else (self.ensemble.member_network(m), self._head(m))
        network = round_parameters(network if trained else self.ensemble.backbone.fresh(), torch.bfloat16)
        bias_C = None if head.bias_C is None else head.bias_C.bfloat16()
        return self._with_head(self._features(network.float()), Head(head.weight_CF.bfloat16(), bias_C, head.classes))

    def _mean(self) -> tuple[nn.Module, Head]:
        members = range(self.ensemble.n_members)
        network = self.ensemble.backbone.fresh(share=False)
        mean: dict[str, Tensor] = {}
        for m in members:
            for name, tensor in self.ensemble.member_network(m).state_dict().items():
                if tensor.is_floating_point():
                    share = tensor.detach().double() / len(members)
                    mean[name] = mean[name] + share if name in mean else share
                else:  # counters and the like, which members share
                    mean[name] = tensor
        network.load_state_dict({name: mean[name].to(tensor.dtype) for name, tensor in network.state_dict().items()})
        heads = self.ensemble.heads
        weight_CF = heads.weight_MCF.detach().double().mean(0).float()
        bias_C = None if heads.bias_MC is None else heads.bias_MC.detach().double().mean(0).float()
        return network, Head(weight_CF, bias_C, self.ensemble.classes)

    def member_cut(self, m: int, ranks: Mapping[str, int]) -> np.ndarray:
        """Logits (N, C) of member m, of whose change of each layer only the `ranks[layer]` largest directions are kept.

        Biases, norms and head are the member's in full; a layer that is not named in `ranks` is the checkpoint's.
        """
        network = self.ensemble.member_network(m)
        for linear in self.ensemble.member_linears():
            with torch.no_grad():
                weight_OI = linear.weight_OI.double() + _largest(linear, m, ranks.get(linear.view.name, 0))
            module = network.get_submodule(linear.view.name)
            module.weight = nn.Parameter(linear.view.to_native(weight_OI.float()), requires_grad=False)
        return self._with_head(self._features(network), self._head(m))

    def of(self, function: LiveOutputs | None) -> dict[str, np.ndarray]:
        """Outputs by name of a live object that is no part of the ensemble, a function of the network's inputs."""
        assert function is not None, "an artifact with the claim 'live' carries its live object"
        with torch.inference_mode():
            parts = [function(self._inputs(rows)) for rows in self._rows()]
        return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in parts[0]}

    def base(self, m: int | None) -> np.ndarray:
        """Logits (N, C) of the untrained network with member m's head (None: with the mean head)."""
        return self._with_head(self.base_features(), self.ensemble.averaged_head() if m is None else self._head(m))

    def _head(self, m: int) -> Head:
        return self.ensemble.heads.head(m, self.ensemble.classes)

    def predictions(self, logits_MNC: np.ndarray) -> Predictions:
        """Logits with the samples' labels and options."""
        return Predictions(
            logits_MNC=logits_MNC,
            labels_N=self.samples.labels_N.astype(np.int64),
            ids_N=list(self.samples.ids_N),
            classes=list(self.ensemble.classes),
            dataset=self.samples.dataset,
            split=self.samples.split,
            mask_NC=self.encoded.mask_NC,
        )

    def _base_features(self) -> Tensor:
        return self._features(self.ensemble.backbone.fresh())

    def _features(self, network: nn.Module) -> Tensor:
        network = network.eval().to(self.device)
        with torch.inference_mode():
            return torch.cat([self.ensemble.backbone.features(network, self._inputs(rows)) for rows in self._rows()])

    def _inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        return tensor_to(self.encoded.batch(rows), self.device)

    @staticmethod
    def _with_head(features_NF: Tensor, head: Head) -> np.ndarray:
        bias_C = None if head.bias_C is None else head.bias_C.float()
        with torch.inference_mode():
            return torch.nn.functional.linear(features_NF.float(), head.weight_CF.float(), bias_C).float().cpu().numpy()


def _largest(linear: MemberLinear, m: int, k: int) -> Tensor:
    """The best approximation of rank k of W_m - W (O, I): the k largest |s_m - S| where only singular values train."""
    if type(linear) is SVELinear:
        gain_R = linear.gain_MR((m,))[0]
        change_R = ((gain_R - 1) * linear.s_R).double()
        kept = change_R.abs().argsort(descending=True, stable=True)[:k]
        return (linear.b_OR[:, kept].double() * (gain_R[kept].double() - 1)) @ linear.a_RI[kept].double()
    left_OR, size_R, right_RI = torch.linalg.svd(linear.merged(m)[0].double() - linear.weight_OI.double(), full_matrices=False)
    return (left_OR[:, :k] * size_R[:k]) @ right_RI[:k]
