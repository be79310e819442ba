"""From the members' logits to the per-sample arrays every metric works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from sve_cli.errors import SveError
from sve_cli.metrics.distribution import KEPT, Distribution, row_blocks
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.statistics import ensemble_uncertainty, log_option_counts, log_softmax, require_usable, tied


@dataclass(frozen=True)
class Aggregated:
    """The ensemble's view of N samples in float64: a few numbers a sample, computed once and shared by all metrics.

    Attributes:
        labels_N: true class, -1 unknown.
        distribution: the ensemble's log-probabilities, for the few metrics that need them all.
        predicted_N: most probable class (the first of equals).
        confidence_N: its probability.
        log_label_N: log-probability of the label; NaN where unknown.
        squared_error_N: sum over classes of the squared error of the probabilities; NaN where the label is unknown.
        entropy_N, expected_entropy_N, mutual_information_N: see `statistics.ensemble_uncertainty`.
        disagreement_N: share of the pairs of members with different most probable classes; 0 for one member.
        variation_ratio_N: share of the members outside the most frequent vote; 0 for one member.
        soft_labels_NC: the label distribution, each row summing to one; None where the data has none.
        unit_N, n_units: which of the units that are resampled together each sample belongs to; None: each is its own.
    """

    labels_N: np.ndarray
    distribution: Distribution
    predicted_N: np.ndarray
    confidence_N: np.ndarray
    log_label_N: np.ndarray
    squared_error_N: np.ndarray
    entropy_N: np.ndarray
    expected_entropy_N: np.ndarray
    mutual_information_N: np.ndarray
    disagreement_N: np.ndarray
    variation_ratio_N: np.ndarray
    soft_labels_NC: np.ndarray | None = None
    unit_N: np.ndarray | None = None
    n_units: int = 0

    @property
    def n(self) -> int:
        return len(self.labels_N)

    @property
    def n_classes(self) -> int:
        return self.distribution.shape[1]

    @property
    def log_probs_NC(self) -> np.ndarray:
        """The ensemble's log-probabilities, -inf for options that do not exist; many samples take much memory."""
        return self.distribution.all()

    @cached_property
    def probs_NC(self) -> np.ndarray:
        """The ensemble's probabilities; many samples take much memory."""
        return np.exp(self.distribution.all())

    @property
    def exists_NC(self) -> np.ndarray:
        """Bool, the option exists."""
        mask_NC = self.distribution.mask_NC
        return np.ones(self.distribution.shape, dtype=bool) if mask_NC is None else mask_NC

    @property
    def all_exist(self) -> bool:
        """Whether every sample has every option."""
        return self.distribution.mask_NC is None or bool(self.distribution.mask_NC.all())

    @cached_property
    def correct_N(self) -> np.ndarray:
        """1.0 where the predicted class is the label, else 0.0."""
        return (self.predicted_N == self.labels_N).astype(np.float64)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for this view: metrics share their tables."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def _made(self) -> dict[object, Any]:
        return {}

    def labelled(self) -> Aggregated:
        """The samples whose label is known."""
        keep = self.labels_N != UNKNOWN_LABEL
        return self if keep.all() else self.part(keep)

    def part(self, keep: np.ndarray) -> Aggregated:
        """The samples `keep` (indices or a boolean mask)."""
        index = np.flatnonzero(keep) if keep.dtype == bool else keep
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        kept: dict[str, Any] = {name: values[index] for name, values in arrays.items() if isinstance(values, np.ndarray)}
        return replace(self, distribution=self.distribution.part(index), **kept)

    def in_units(self, n_units: int, rng: np.random.Generator) -> Aggregated:
        """The same samples in random groups of equal size (but for one), which are resampled together."""
        return replace(self, unit_N=rng.permutation(self.n) % n_units, n_units=n_units)


def log_probs(predictions: Predictions) -> np.ndarray:
    """Every member's masked log-probabilities (M, N, C) in float64; -inf where an option does not exist."""
    return np.stack([log_softmax(logits_NC, predictions.mask_NC) for logits_NC in predictions.logits_MNC])


def aggregate(predictions: Predictions, how: str = "probs", per_option: bool | None = None) -> Aggregated:
    """Aggregate the members: `how` is "probs" (mean of probabilities) or "logits" (softmax of the mean logits).

    Args:
        per_option: entropies are divided by ln K_n; False: they are in nats; None: divided where K_n varies between these
            samples. Sets that are compared need one unit, which none of them knows alone.

    Raises:
        SveError: logits are not finite, a sample has no options, a label names an option that does not exist, or soft labels
            are no distribution over the options.
    """
    where = source_name(predictions)
    require_usable(predictions.logits_MNC, predictions.mask_NC, predictions.ids_N, where)
    labels_N, mask_NC = predictions.labels_N, predictions.mask_NC
    if mask_NC is not None:
        wrong_N = (labels_N != UNKNOWN_LABEL) & ~mask_NC[np.arange(len(labels_N)), labels_N]
        if wrong_N.any():
            sample = predictions.ids_N[int(np.argmax(wrong_N))]
            raise SveError(f"The label of sample '{sample}' of '{where}' is an option that does not exist.", "Mend the row.")
    disagreement_N, variation_ratio_N = _votes(predictions.logits_MNC, mask_NC)
    numbers, distribution = _per_sample(predictions, how, _entropy_scale(predictions, per_option))
    exists_NC = np.ones(distribution.shape, dtype=bool) if mask_NC is None and predictions.soft_labels_NC is not None else mask_NC
    return Aggregated(
        labels_N=labels_N,
        distribution=distribution,
        disagreement_N=disagreement_N,
        variation_ratio_N=variation_ratio_N,
        soft_labels_NC=None if exists_NC is None else _soft_labels(predictions, exists_NC, where),
        **numbers,
    )


def aggregate_each(predictions: Predictions, how: str = "probs") -> list[Aggregated]:
    """Every member alone."""
    return [aggregate(predictions.member(m), how) for m in range(predictions.n_members)]


def _entropy_scale(predictions: Predictions, per_option: bool | None) -> np.ndarray | None:
    """What the entropies of each sample are divided by (N,); None: nothing."""
    if per_option is None:
        return log_option_counts(predictions.mask_NC)
    n, width, mask_NC = predictions.n_samples, predictions.n_classes, predictions.mask_NC
    options_N = np.full(n, width) if mask_NC is None else mask_NC.sum(axis=1)
    return np.log(options_N.astype(np.float64)) if per_option else np.zeros(n)


def _per_sample(predictions: Predictions, how: str, scale_N: np.ndarray | None) -> tuple[dict[str, Any], Distribution]:
    """What is computed from all classes of a sample, and the log-probabilities themselves where they are few."""
    logits_MNC, mask_NC, labels_N = predictions.logits_MNC, predictions.mask_NC, predictions.labels_N
    n, width = logits_MNC.shape[1:]
    few = n * width <= KEPT
    kept_NC = None
    parts: dict[str, list[np.ndarray]] = {}
    for rows in [slice(0, n)] if few else row_blocks(n, width):
        mask_BC = None if mask_NC is None else mask_NC[rows]
        found = ensemble_uncertainty(logits_MNC[:, rows], mask_BC, how, None if scale_N is None else scale_N[rows])
        probs_BC = np.exp(found.log_probs_NC)
        predicted_B, index = found.log_probs_NC.argmax(axis=1), np.arange(len(probs_BC))
        confidence_B, label_B = tied(probs_BC[index, predicted_B]), labels_N[rows]
        probs_BC[index, label_B] -= 1.0  # an unknown label is -1: its row is not used
        unknown_B = label_B == UNKNOWN_LABEL
        for name, values in (
            ("predicted_N", predicted_B),
            ("confidence_N", confidence_B),
            ("log_label_N", np.where(unknown_B, np.nan, found.log_probs_NC[index, label_B])),
            ("squared_error_N", np.where(unknown_B, np.nan, np.square(probs_BC, out=probs_BC).sum(axis=1))),
            ("entropy_N", found.total_N),
            ("expected_entropy_N", found.expected_N),
            ("mutual_information_N", found.mutual_N),
        ):
            parts.setdefault(name, []).append(values)
        kept_NC = found.log_probs_NC if few else None
    numbers = {name: np.concatenate(values) for name, values in parts.items()}
    return numbers, Distribution(mask_NC, kept_NC) if few else Distribution(mask_NC, None, logits_MNC, how)


def source_name(predictions: Predictions) -> str:
    """The data set and split in one word, for messages."""
    return f"{predictions.dataset}:{predictions.split}" if predictions.split else predictions.dataset


def ood_name(source: str) -> str:
    """The name of the OOD set `source_name`: the data set, with its split where that is not its test split."""
    return source.removesuffix(":test")


def _soft_labels(predictions: Predictions, exists_NC: np.ndarray, where: str) -> np.ndarray | None:
    """The label distributions in float64, renormalised (they are stored in float32)."""
    if predictions.soft_labels_NC is None:
        return None
    soft_NC = predictions.soft_labels_NC.astype(np.float64)
    if soft_NC.shape != exists_NC.shape:
        raise SveError(f"The label distributions of '{where}' have shape {soft_NC.shape}, its predictions {exists_NC.shape}.")
    total_N = np.where(exists_NC, soft_NC, 0.0).sum(axis=1)
    good_N = (soft_NC >= 0).all(axis=1) & (np.abs(soft_NC.sum(axis=1) - 1.0) <= 1e-3) & (np.abs(total_N - 1.0) <= 1e-3)
    if not good_N.all():
        sample = predictions.ids_N[int(np.argmin(good_N))]
        raise SveError(
            f"The label distribution of sample '{sample}' of '{where}' is no distribution over its options.",
            "It must hold numbers from 0 to 1 that sum to one.",
        )
    return np.where(exists_NC, soft_NC, 0.0) / total_N[:, None]


def _votes(logits_MNC: np.ndarray, mask_NC: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Disagreement and variation ratio of each sample, from how many members vote as member m does."""
    n_members, n, _ = logits_MNC.shape
    if n_members == 1:
        return np.zeros(n), np.zeros(n)
    shown = (logits_NC if mask_NC is None else np.where(mask_NC, logits_NC, -np.inf) for logits_NC in logits_MNC)
    votes_MN = np.stack([logits_NC.argmax(axis=1) for logits_NC in shown])
    pairs_N, most_N = np.zeros(n), np.ones(n)
    for vote_N in votes_MN:
        same_N = (votes_MN == vote_N).sum(axis=0).astype(np.float64)
        pairs_N += same_N - 1.0
        most_N = np.maximum(most_N, same_N)
    return 1.0 - pairs_N / (n_members * (n_members - 1.0)), 1.0 - most_N / n_members
