"""What the loop minimises, and what it selects epochs by. Training has one default; distillation brings its own.

Shapes: M members, B batch, N samples, C classes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sve_cli.recipe.spec import TrainSpec
from sve_cli.tasks.common import Encoded, masked_logits
from sve_cli.training.schedule import mean_nll


class Objective(Protocol):
    """A loss for each member, and the figures of an epoch.

    Attributes:
        selects: the key of `validation` whose smallest value is the best epoch.
    """

    selects: str

    def loss(self, logits_MBC: Tensor, part: list[np.ndarray]) -> Tensor:
        """Each member's mean loss (M,). `part`: the rows of the training set, one array a member, or one for all of them."""

    def validation(self, logits_MNC: np.ndarray) -> dict[str, Any]:
        """What an epoch's record says of the logits on the validation rows."""


class CrossEntropy:
    """Each member's own mean cross-entropy to the labels; epochs are selected by the NLL of the mean probability."""

    selects = "validation_nll"

    def __init__(self, train: Encoded, validation: Encoded | None, spec: TrainSpec, n_classes: int, device: torch.device) -> None:
        self.train, self.rows, self.spec, self.n_classes, self.device = train, validation, spec, n_classes, device
        self.class_weights_C = self._class_weights()

    def _class_weights(self) -> Tensor | None:
        if self.spec.class_weights == "none":
            return None
        counts = np.bincount(self.train.labels_N, minlength=self.n_classes)
        weights = 1 / counts.clip(min=1)  # the mean over the samples is 1, whether or not a class has any
        return torch.tensor(weights / (weights * counts).sum() * counts.sum(), dtype=torch.float32, device=self.device)

    def loss(self, logits_MBC: Tensor, part: list[np.ndarray]) -> Tensor:
        """Each member's mean cross-entropy (M,)."""
        stacked = np.concatenate(part)
        labels = torch.from_numpy(self.train.labels_N[stacked]).to(self.device)
        mask = None if self.train.mask_NC is None else torch.from_numpy(self.train.mask_NC[stacked]).to(self.device)
        m, b, c = logits_MBC.shape
        if len(part) == 1 and m > 1:
            labels, mask = labels.repeat(m), None if mask is None else mask.repeat(m, 1)
        logits = masked_logits(logits_MBC.reshape(m * b, c), mask)
        smoothing = self.spec.label_smoothing
        loss = F.cross_entropy(logits, labels, self.class_weights_C, reduction="none")
        if smoothing:
            log_probs = torch.log_softmax(logits, -1)
            live = torch.isfinite(log_probs)
            uniform = -torch.where(live, log_probs, torch.zeros(())).sum(-1) / live.sum(-1)
            weight = 1.0 if self.class_weights_C is None else self.class_weights_C[labels]
            loss = (1 - smoothing) * loss + smoothing * weight * uniform
        return loss.reshape(m, b).mean(1)

    def validation(self, logits_MNC: np.ndarray) -> dict[str, Any]:
        """NLL and accuracy of the members' mean, and their disagreement."""
        assert self.rows is not None
        mask_NC = self.rows.mask_NC
        masked = logits_MNC if mask_NC is None else np.where(mask_NC, logits_MNC, -np.inf)
        labels = torch.from_numpy(self.rows.labels_N)
        nll = mean_nll(torch.from_numpy(logits_MNC), labels, None if mask_NC is None else torch.from_numpy(mask_NC))
        votes_MN = masked.argmax(-1)
        pairs = [(a, b) for a in range(len(votes_MN)) for b in range(a)]
        disagreement = float(np.mean([(votes_MN[a] != votes_MN[b]).mean() for a, b in pairs])) if pairs else 0.0
        probs = torch.softmax(torch.from_numpy(masked).double(), -1).mean(0)
        accuracy = float((probs.argmax(-1) == labels).double().mean())
        return {"validation_nll": nll, "validation_accuracy": accuracy, "disagreement": disagreement}
