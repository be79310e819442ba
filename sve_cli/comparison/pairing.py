"""Predictions of several systems brought to the same samples, in one order, with one order of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sve_cli.errors import SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions

LEAST_SHARED = 0.5


@dataclass(frozen=True)
class Aligned:
    """Predictions on the same samples. `left_out`: how many samples of each were left out."""

    predictions: list[Predictions]
    left_out: list[int]


def align(systems: Sequence[Predictions], names: Sequence[str] | None = None) -> Aligned:
    """Keep the samples that all systems have, sorted by id, with the classes in the first system's order.

    What a system gets does not depend on the order of its rows. Labels and label distributions that only some systems know
    are known to all afterwards.

    Args:
        names: what messages call the systems.

    Raises:
        SveError: an id occurs twice, fewer than half of a system's samples are shared, classes differ, or a sample has
            different labels or options.
    """
    called = [f"'{name}'" for name in names] if names else [f"system {i + 1}" for i in range(len(systems))]
    shared = shared_ids([system.ids_N for system in systems], called)
    kept = [_rows(_classes(system, systems[0], name, called[0]), shared) for system, name in zip(systems, called, strict=True)]
    labels_N, soft_NC = _labels(kept, called), next((p.soft_labels_NC for p in kept if p.soft_labels_NC is not None), None)
    for system, name in zip(kept[1:], called[1:], strict=True):
        _same_options(kept[0], system, called[0], name)
    labelled = [replace(system, labels_N=labels_N, soft_labels_NC=soft_NC) for system in kept]
    return Aligned(labelled, [system.n_samples - len(shared) for system in systems])


def shared_ids(ids: Sequence[Sequence[str]], called: Sequence[str]) -> list[str]:
    """The sample ids that all systems have, sorted.

    Args:
        ids: of each system; called: what messages call it.

    Raises:
        SveError: an id occurs twice, or fewer than half of a system's samples are shared.
    """
    for ids_N, name in zip(ids, called, strict=True):
        if len(set(ids_N)) < len(ids_N):
            twice = Counter(ids_N).most_common(1)[0][0]
            raise SveError(f"The sample id '{twice}' occurs more than once in {name}.", "Give each sample an id of its own.")
    shared = sorted(set(ids[0]).intersection(*ids[1:]))
    for ids_N, name in zip(ids, called, strict=True):
        if len(shared) < LEAST_SHARED * len(ids_N) or not shared:
            raise SveError(
                f"Only {len(shared):,} of the {len(ids_N):,} samples of {name} are also in the others it is compared with.",
                "Compare predictions on the same split of the same data, drawn alike (the same --limit and data.seed).",
            )
    return shared


def _classes(system: Predictions, first: Predictions, name: str, first_name: str) -> Predictions:
    """The same predictions with the classes in the order of `first`, without what a comparison does not need."""
    bare = replace(system, features_MNF=None, columns={})
    if system.classes == first.classes:
        return bare
    for one, its, other, other_name in ((first, first_name, system, name), (system, name, first, first_name)):
        if missing := [c for c in one.classes if c not in set(other.classes)]:
            raise SveError(
                f"The classes differ: {its} has '{missing[0]}' and {other_name} has not ({len(missing)} such).",
                "Only systems for the same classes can be compared.",
            )
    if len(set(system.classes)) < len(system.classes) or len(system.classes) != len(first.classes):
        raise SveError(f"Two classes of {name} have one name, so its classes cannot be matched with those of {first_name}.")
    place = {c: i for i, c in enumerate(system.classes)}
    order_C = np.array([place[c] for c in first.classes])
    new_of_old_C = np.argsort(order_C)
    return replace(
        bare,
        classes=first.classes,
        logits_MNC=system.logits_MNC[:, :, order_C],
        labels_N=np.where(system.labels_N == UNKNOWN_LABEL, UNKNOWN_LABEL, new_of_old_C[system.labels_N]),
        mask_NC=None if system.mask_NC is None else system.mask_NC[:, order_C],
        soft_labels_NC=None if system.soft_labels_NC is None else system.soft_labels_NC[:, order_C],
    )


def _rows(system: Predictions, ids: list[str]) -> Predictions:
    row = {sample: i for i, sample in enumerate(system.ids_N)}
    return system.subset(np.array([row[sample] for sample in ids]))


def _labels(systems: list[Predictions], names: Sequence[str]) -> np.ndarray:
    """The labels, from whichever system knows them."""
    labels_N, known_by = systems[0].labels_N, np.zeros(systems[0].n_samples, dtype=int)
    for k, system in enumerate(systems[1:], start=1):
        both_N = (labels_N != UNKNOWN_LABEL) & (system.labels_N != UNKNOWN_LABEL)
        if (wrong_N := both_N & (labels_N != system.labels_N)).any():
            i = int(np.argmax(wrong_N))
            one, other = (system.classes[int(values[i])] for values in (labels_N, system.labels_N))
            raise SveError(
                f"The label of sample '{system.ids_N[i]}' is '{one}' in {names[known_by[i]]} and '{other}' in {names[k]} "
                f"({int(wrong_N.sum()):,} such samples).",
                "Compare predictions on the same data.",
            )
        new_N = (labels_N == UNKNOWN_LABEL) & (system.labels_N != UNKNOWN_LABEL)
        labels_N, known_by = np.where(new_N, system.labels_N, labels_N), np.where(new_N, k, known_by)
    return labels_N


def _same_options(first: Predictions, system: Predictions, first_name: str, name: str) -> None:
    """Refuse systems that chose among different options."""
    if first.mask_NC is None and system.mask_NC is None:
        return
    every = np.ones(first.logits_MNC.shape[1:], dtype=bool)
    here_NC, there_NC = (every if p.mask_NC is None else p.mask_NC for p in (first, system))
    if (wrong_N := (here_NC != there_NC).any(axis=1)).any():
        sample = first.ids_N[int(np.argmax(wrong_N))]
        message = f"Sample '{sample}' has other options in {first_name} than in {name}."
        raise SveError(message, "Compare predictions on the same data.")
