"""The only inference loop: members one after another, each merged into a plain network (its definition), float32.

Shapes: M members, N samples, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sve_cli.allocator import kept_pages
from sve_cli.ensemble import Ensemble
from sve_cli.predictions import Predictions
from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, tensor_to

Progress = Callable[[int], None]


def batches_by_length(encoded: Encoded, batch_size: int) -> list[np.ndarray]:
    """Row batches in an order that pads little: longest first (so that running out of memory shows at once)."""
    order = np.arange(len(encoded)) if encoded.lengths_N is None else np.argsort(-encoded.lengths_N, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def predict_logits(
    ensemble: Ensemble,
    encoded: Encoded,
    batch_size: int,
    members: Sequence[int] | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    keep_features: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits (M, N, C) float32 of the members' definitions, and features (M, N, F) if asked for.

    Only one member's merged weights are in memory at a time. Members that share one network read it once.
    """
    index = list(range(ensemble.n_members)) if members is None else list(members)
    ensemble.set_training(False)
    batches = batches_by_length(encoded, batch_size)
    logits_MNC = np.zeros((len(index), len(encoded), len(ensemble.classes)), dtype=np.float32)
    features_MNF = np.zeros((len(index), len(encoded), ensemble.backbone.feature_dim), dtype=np.float32) if keep_features else None
    passes = [index] if ensemble.shares_features else [[m] for m in index]
    with torch.inference_mode(), kept_pages():
        done = 0
        for group in passes:
            with ensemble.merged(group[0]):
                for rows in batches:
                    inputs = encoded.batch(rows)
                    output = ensemble(tensor_to(inputs, device) if device else inputs, members=group)
                    places = [index.index(m) for m in group]
                    for place, logits in zip(places, output.logits_MBC, strict=True):
                        logits_MNC[place, rows] = logits.float().cpu().numpy()
                    if features_MNF is not None:
                        for place, features in zip(places, output.features_MBF, strict=True):
                            features_MNF[place, rows] = features.float().cpu().numpy()
                    done += len(rows) * len(group)
                    if progress:
                        progress(done)
    return logits_MNC, features_MNF


def predict(
    ensemble: Ensemble,
    samples: Samples,
    encoded: Encoded,
    batch_size: int,
    model_digest: str = "",
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Predictions of every member on a split."""
    logits_MNC, _ = predict_logits(ensemble, encoded, batch_size, device=device, progress=progress)
    return as_predictions(logits_MNC, samples, encoded, ensemble.classes, model_digest)


def as_predictions(
    logits_MNC: np.ndarray, samples: Samples, encoded: Encoded, classes: list[str], model_digest: str
) -> Predictions:
    """Logits with the labels, ids, masks and columns of their samples."""
    return Predictions(
        logits_MNC=logits_MNC,
        labels_N=samples.labels_N.astype(np.int64),
        ids_N=list(samples.ids_N),
        classes=list(classes),
        dataset=samples.dataset,
        split=samples.split,
        model_digest=model_digest,
        mask_NC=encoded.mask_NC,
        soft_labels_NC=samples.soft_labels_NC,
        columns=dict(samples.columns),
    )
