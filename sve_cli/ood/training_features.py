"""Training features: the state of the OOD scores that measure distances in feature space, stored with an evaluation.

Shapes: M members, K training samples kept, F features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sve_cli.errors import SveError
from sve_cli.filemode import whole
from sve_cli.predictions import Predictions

MOST_ROWS = 10_000
MOST_NUMBERS = 16_000_000  # 64 MB of float32, whatever M and F are
FORMAT = "sve-features/1"


@dataclass(frozen=True)
class TrainingFeatures:
    """Features (M, K, F) float32 of a draw of training samples in every member, and their labels (K,).

    Attributes:
        total: how many training samples the draw is from.
        model_digest: of the trained state that made them.
    """

    features_MKF: np.ndarray
    labels_K: np.ndarray
    total: int
    model_digest: str = ""

    def save(self, path: Path) -> None:
        """Write one safetensors file.

        Raises:
            OSError: the disk refuses; then nothing half-written is there.
        """
        tensors = {"features_MKF": self.features_MKF.astype(np.float32), "labels_K": self.labels_K.astype(np.int64)}
        meta = {"format": FORMAT, "total": self.total, "model_digest": self.model_digest}
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        with whole(path) as temporary:
            save_file(arrays, temporary, metadata={"meta": json.dumps(meta, sort_keys=True)})

    @staticmethod
    def load(path: Path) -> TrainingFeatures:
        """Read what `save` wrote.

        Raises:
            SveError: the file is missing, damaged or something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads((file.metadata() or {}).get("meta", "{}"))
                if meta.get("format") != FORMAT:
                    raise SveError(f"'{path}' holds no training features of this tool.", "Evaluate the run again.")
                features, labels = file.get_tensor("features_MKF"), file.get_tensor("labels_K")
        except (OSError, SafetensorError) as error:
            raise SveError(f"Cannot read the training features '{path}' ({error}).", "Evaluate the run again.") from error
        return TrainingFeatures(features, labels, meta["total"], meta["model_digest"])


def rows_kept(n_members: int, n_features: int) -> int:
    """How many training samples are kept, so that the stored state stays bounded."""
    return max(1, min(MOST_ROWS, MOST_NUMBERS // (n_members * n_features)))


def features_of(predictions: Predictions, training: TrainingFeatures) -> np.ndarray:
    """The features (M, N, F) of predictions that go with a state.

    Raises:
        SveError: they were not kept, or are not of the same members.
    """
    where = f"{predictions.dataset}:{predictions.split}"
    if predictions.features_MNF is None:
        raise SveError(f"The predictions on '{where}' hold no features.", "Evaluate the run with this score, or choose another.")
    found, kept = predictions.features_MNF.shape, training.features_MKF.shape
    if (found[0], found[2]) != (kept[0], kept[2]):
        raise SveError(
            f"'{where}' has features of {found[0]} members and {found[2]} numbers; training has {kept[0]} and {kept[2]}.",
            "Predict both with one model.",
        )
    return predictions.features_MNF
