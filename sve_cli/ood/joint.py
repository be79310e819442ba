"""A test set and an out-of-distribution set of one model as one, so that every score treats both alike."""

from __future__ import annotations

import numpy as np

from sve_cli.errors import SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions


def join(test: Predictions, ood: Predictions) -> Predictions:
    """The samples of the test set and after them those of the OOD set, without labels.

    Entropies are then divided by ln K_n on both sides or on neither. With masks the shorter list of options is filled up.

    Raises:
        SveError: the sets have other members, or other classes without a mask that says which exist.
    """
    where = f"{ood.dataset}:{ood.split}" if ood.split else ood.dataset
    if test.n_members != ood.n_members:
        raise SveError(f"'{where}' has {ood.n_members} members and the test set {test.n_members}.", "Predict both with one model.")
    masked = test.mask_NC is not None or ood.mask_NC is not None
    if test.n_classes != ood.n_classes and not masked:
        raise SveError(f"'{where}' has {ood.n_classes} classes and the test set {test.n_classes}.", "Predict both with one model.")
    longest = max(test, ood, key=lambda part: part.n_classes)

    def filled(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, longest.n_classes - array.shape[-1])])

    features_MNF = None
    if test.features_MNF is not None and ood.features_MNF is not None and test.features_MNF.shape[2] == ood.features_MNF.shape[2]:
        features_MNF = np.concatenate([test.features_MNF, ood.features_MNF], axis=1)
    masks = [np.ones(p.logits_MNC.shape[1:], dtype=bool) if p.mask_NC is None else p.mask_NC for p in (test, ood)]
    n = test.n_samples + ood.n_samples
    return Predictions(
        logits_MNC=np.concatenate([filled(part.logits_MNC) for part in (test, ood)], axis=1),
        labels_N=np.full(n, UNKNOWN_LABEL, dtype=np.int64),
        ids_N=[*test.ids_N, *ood.ids_N],
        classes=longest.classes,
        dataset=ood.dataset,
        split=ood.split,
        mask_NC=np.concatenate([filled(mask) for mask in masks]) if masked else None,
        features_MNF=features_MNF,
    )
