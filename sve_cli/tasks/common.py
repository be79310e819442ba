"""What the tasks share: the heads at step 0, and the encoded split the loops draw batches from.

Shapes: M members, N samples, B batch, C classes, F features, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sve_cli.backbone import Backbone, Head, Inputs
from sve_cli.ensemble import MemberHeads, keyed_generator
from sve_cli.errors import CheckpointError, DataError
from sve_cli.recipe.spec import TaskSpec
from sve_cli.samples import Samples


class Encoded(ABC):
    """A split, ready for the network: tokenised or decoded once."""

    labels_N: np.ndarray
    lengths_N: np.ndarray | None = None
    mask_NC: np.ndarray | None = None
    augments: bool = False  # whether `batch` draws from its generator
    n_shortened: int = 0  # inputs cut to the network's longest length

    def __len__(self) -> int:
        return len(self.labels_N)

    @abstractmethod
    def batch(self, rows_B: np.ndarray, generator: torch.Generator | None = None) -> Inputs:
        """The network's inputs for these rows. `generator`: draw training augmentation from it; None: none."""


class TokenisedText(Encoded):
    """Token ids, padded to the longest of each batch."""

    def __init__(self, token_ids: Sequence[Sequence[int]], labels_N: np.ndarray, pad_id: int, left: bool = False) -> None:
        self.labels_N = labels_N
        self.lengths_N = np.array([len(t) for t in token_ids], dtype=np.int64)
        self.starts_N = np.concatenate([[0], np.cumsum(self.lengths_N)])
        self.flat = np.concatenate([np.asarray(t, dtype=np.int64) for t in token_ids]) if token_ids else np.zeros(0, np.int64)
        self.types_flat: np.ndarray | None = None
        self.pad_id = pad_id
        self.left = left

    def batch(self, rows_B: np.ndarray, generator: torch.Generator | None = None) -> Inputs:
        assert self.lengths_N is not None
        lengths = self.lengths_N[rows_B]
        width = max(int(lengths.max()), 1)
        column = np.arange(width)
        mask = column >= width - lengths[:, None] if self.left else column < lengths[:, None]
        source = np.concatenate([np.arange(s, s + n) for s, n in zip(self.starts_N[rows_B], lengths, strict=True)])
        ids = np.full((len(rows_B), width), self.pad_id, dtype=np.int64)
        ids[mask] = self.flat[source]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.types_flat is not None:
            types = np.zeros_like(ids)
            types[mask] = self.types_flat[source]
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs


class Task(ABC):
    """Head, pooling, loss mask and collation of one kind of problem."""

    modality: str

    def __init__(self, spec: TaskSpec, classes: list[str], backbone: Backbone) -> None:
        self.spec = spec
        self.classes = classes
        self.backbone = backbone
        self.notes: list[str] = []
        self.checkpoint_head, self._why_not = match_head(backbone.head, classes)  # what "before training" is measured with
        self.own_head = self._usable_head()

    @abstractmethod
    def encode(self, samples: Samples, augment: str = "none") -> Encoded:
        """Tokenise or decode a split."""

    @staticmethod
    def trains_heads(spec: TaskSpec) -> bool:
        """Whether the heads that `make_heads` gives are trained."""
        return True

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        """Copies of the checkpoint's own head, or new ones, N(0, head_init_std²) with zero bias (arXiv 2601.22068)."""
        if self.own_head is not None:
            return MemberHeads([self.own_head] * n_members)
        shape = (len(self.classes), self.backbone.feature_dim)
        heads = []
        for m in range(n_members):
            weight_CF = self.spec.head_init_std * torch.randn(shape, generator=keyed_generator(seed, "head", m))
            heads.append(Head(weight_CF, torch.zeros(shape[0]) if self.backbone.head_has_bias else None, self.classes))
        return MemberHeads(heads)

    def _usable_head(self) -> Head | None:
        if self.spec.head == "new":
            return None
        if self.checkpoint_head is None:
            if self.spec.head == "checkpoint":
                raise CheckpointError(f"task.head is checkpoint, but {self._why_not}.", "Write task.head: new.")
            return None
        shown = ", ".join(self.classes[:4]) + (" …" if len(self.classes) > 4 else "")
        self.notes.append(f"The checkpoint's own head is kept: its classes are the data's, mapped by name ({shown}).")
        return self.checkpoint_head


def match_head(head: Head | None, classes: list[str]) -> tuple[Head | None, str]:
    """The checkpoint's head with its rows in the data's class order; None and the reason when it does not fit."""
    if head is None:
        return None, "the checkpoint has no classifier of its own"
    if head.classes is None:
        return None, "the checkpoint does not name its classes"
    keys = [_key(c) for c in head.classes]
    wanted = [_key(c) for c in classes]
    if len(set(keys)) != len(keys) or sorted(keys) != sorted(wanted):
        absent = [c for c, k in zip(classes, wanted, strict=True) if k not in keys]
        detail = f"'{absent[0]}' is not one of its classes" if absent else f"it has {len(keys)} classes, the data {len(wanted)}"
        return None, f"the checkpoint's classes are not the data's ({detail})"
    order = [keys.index(k) for k in wanted]
    return Head(head.weight_CF[order], None if head.bias_C is None else head.bias_C[order], classes), ""


def _key(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def require_modality(samples: Samples, modality: str) -> None:
    """Refuse a set of another kind.

    Raises:
        DataError: naming both kinds.
    """
    if samples.modality != modality:
        raise DataError(
            f"'{samples.dataset}' holds {samples.modality} inputs, but this task reads {modality} inputs.", "Choose another set."
        )


def tensor_to(inputs: Inputs, device: torch.device, **kw: Any) -> Inputs:
    """Inputs on a device."""
    return {k: v.to(device, **kw) for k, v in inputs.items()}


def masked_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits with -inf where an option does not exist."""
    return logits if mask is None else logits.masked_fill(~mask, float("-inf"))
