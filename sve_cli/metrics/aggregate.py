"""From the members' logits to the per-sample arrays every metric works on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from sve_cli.errors import SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.statistics import ensemble_uncertainty, log_softmax, require_usable


@dataclass(frozen=True)
class Aggregated:
    """The ensemble's view of N samples in float64.

    Attributes:
        labels_N: true class, -1 unknown.
        log_probs_NC, probs_NC: the ensemble's distribution; -inf and 0 for options that do not exist.
        exists_NC: bool, the option exists.
        predicted_N: most probable class (the first of equals).
        confidence_N: its probability.
        entropy_N, expected_entropy_N, mutual_information_N: see `statistics.ensemble_uncertainty`.
        disagreement_N: share of the pairs of members with different most probable classes; 0 for one member.
        variation_ratio_N: share of the members outside the most frequent vote; 0 for one member.
        soft_labels_NC: the label distribution, each row summing to one; None where the data has none.
    """

    labels_N: np.ndarray
    log_probs_NC: np.ndarray
    probs_NC: np.ndarray
    exists_NC: np.ndarray
    predicted_N: np.ndarray
    confidence_N: np.ndarray
    entropy_N: np.ndarray
    expected_entropy_N: np.ndarray
    mutual_information_N: np.ndarray
    disagreement_N: np.ndarray
    variation_ratio_N: np.ndarray
    soft_labels_NC: np.ndarray | None = None

    @property
    def n(self) -> int:
        return len(self.labels_N)

    @property
    def n_classes(self) -> int:
        return int(self.probs_NC.shape[1])

    @property
    def correct_N(self) -> np.ndarray:
        """1.0 where the predicted class is the label, else 0.0."""
        return (self.predicted_N == self.labels_N).astype(np.float64)

    def labelled(self) -> Aggregated:
        """The samples whose label is known."""
        keep = self.labels_N != UNKNOWN_LABEL
        return self if keep.all() else self.part(keep)

    def part(self, keep: np.ndarray) -> Aggregated:
        """The samples `keep` (indices or a boolean mask)."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: values[keep] for name, values in arrays.items() if values is not None})


def log_probs(predictions: Predictions) -> np.ndarray:
    """Every member's masked log-probabilities (M, N, C) in float64; -inf where an option does not exist."""
    return np.stack([log_softmax(logits_NC, predictions.mask_NC) for logits_NC in predictions.logits_MNC])


def aggregate(predictions: Predictions, how: str = "probs") -> Aggregated:
    """Aggregate the members: `how` is "probs" (mean of probabilities) or "logits" (softmax of the mean logits).

    Raises:
        SveError: logits are not finite, a sample has no options, a label names an option that does not exist, or soft labels
            are no distribution over the options.
    """
    where = source_name(predictions)
    require_usable(predictions.logits_MNC, predictions.mask_NC, predictions.ids_N, where)
    shape = predictions.logits_MNC.shape[1:]
    exists_NC = np.ones(shape, dtype=bool) if predictions.mask_NC is None else predictions.mask_NC
    labels_N = predictions.labels_N
    wrong_N = (labels_N != UNKNOWN_LABEL) & ~exists_NC[np.arange(len(labels_N)), labels_N]
    if wrong_N.any():
        sample = predictions.ids_N[int(np.argmax(wrong_N))]
        raise SveError(f"The label of sample '{sample}' of '{where}' is an option that does not exist.", "Mend the row.")
    uncertainty = ensemble_uncertainty(predictions.logits_MNC, predictions.mask_NC, how)
    probs_NC = np.exp(uncertainty.log_probs_NC)
    predicted_N = uncertainty.log_probs_NC.argmax(axis=1)
    disagreement_N, variation_ratio_N = _votes(predictions.logits_MNC, predictions.mask_NC)
    return Aggregated(
        labels_N=labels_N,
        log_probs_NC=uncertainty.log_probs_NC,
        probs_NC=probs_NC,
        exists_NC=exists_NC,
        predicted_N=predicted_N,
        confidence_N=np.take_along_axis(probs_NC, predicted_N[:, None], axis=1)[:, 0],
        entropy_N=uncertainty.total_N,
        expected_entropy_N=uncertainty.expected_N,
        mutual_information_N=uncertainty.mutual_N,
        disagreement_N=disagreement_N,
        variation_ratio_N=variation_ratio_N,
        soft_labels_NC=_soft_labels(predictions, exists_NC, where),
    )


def source_name(predictions: Predictions) -> str:
    """The data set and split in one word, for messages."""
    return f"{predictions.dataset}:{predictions.split}" if predictions.split else predictions.dataset


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
