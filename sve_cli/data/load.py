"""A recipe's `data` section to samples.

Shapes: N samples.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from sve_cli.data.columns import option_keys, read_ids, read_inputs, read_slices, read_soft_labels
from sve_cli.data.labels import choice_labels, chosen_classes, coded_labels, mapped_labels, strangers
from sve_cli.data.sources import Source, local_path, local_splits, open_source, split_name
from sve_cli.data.tables import RawSplit
from sve_cli.errors import DataError
from sve_cli.predictions import UNKNOWN_LABEL
from sve_cli.recipe.spec import DataSpec
from sve_cli.samples import DataSet, Samples

ROLES = ("train", "validation", "test")
HELD_OUT = "held_out_classes"  # as an out-of-distribution set: the classes that data.classes leaves out


def load_data(spec: DataSpec, modality: str, seed: int, limit: int | None = None, need: tuple[str, ...] = ROLES) -> DataSet:
    """The splits `need` of the recipe's data set, with one list of classes.

    Args:
        spec: the recipe's data section.
        modality: "text", "image" or "multiple_choice".
        seed: of the hold-out and of `limit`, unless the section has its own.
        limit: most rows per split, drawn in proportion to the labels; the order of the source is kept.
        need: roles to load.

    Raises:
        DataError: the set, a split, a column or a label is missing or cannot be used.
    """
    seed = spec.seed if spec.seed is not None else seed
    source = open_source(spec.name, spec, spec.config, spec.revision)
    _check_splits(spec, source)
    hold_out = _holds_out(spec, source)
    notes: list[str] = []
    raws = _read(source, spec, need, hold_out)
    classes, all_names = _classes(raws, source, spec, modality)
    samples: dict[str, Samples] = {}
    for role, raw in raws.items():
        loaded = _strict_samples(raw, spec, modality, classes, all_names, notes)
        samples[role] = loaded if role == "test" else _labelled(loaded, notes)
    if hold_out and "train" in samples:
        samples["train"], samples["validation"] = _split_train(samples["train"], spec, source, seed, notes)
    if spec.limit is not None and "train" in samples and len(samples["train"]) > spec.limit:
        notes.append(f"data.limit: {spec.limit} of {len(samples['train'])} training rows are used.")
        samples["train"] = limited(samples["train"], spec.limit, seed)
    for role in need:
        if limit is not None and len(samples[role]) > limit:
            notes.append(f"{role} limited to {limit} of {len(samples[role])} rows: numbers are not comparable with full runs.")
            samples[role] = limited(samples[role], limit, seed)
    for role in need:
        _check_filled(samples[role], role, notes)
    train, validation, test = (samples[role] if role in need else None for role in ROLES)
    return DataSet(train, validation, test, notes)


def load_samples(
    name: str, spec: DataSpec, modality: str, default_split: str = "test", classes: list[str] | None = None, labels: bool = True
) -> Samples:
    """One more set, for OOD detection or a second evaluation: 'set', 'set:split' or a path.

    Columns are called as in `spec`. Labels are mapped by name to `classes` (default: `spec.classes`, else the set's own);
    those that are not among them, or not given at all, become -1. 'held_out_classes' is the samples of the recipe's own test
    split whose class `spec.classes` leaves out. Without `labels` a label column that holds no labels is passed over.

    Raises:
        DataError: the set, the split or the input column does not exist.
    """
    if name == HELD_OUT and local_path(name) is None:
        return _held_out(spec, modality)
    dataset, split = split_name(name)
    same = dataset == spec.name
    source = open_source(dataset, spec, spec.config if same else None, spec.revision if same else None)
    if split is None:
        split = source.splits[0] if len(source.splits) == 1 else default_split
    raw = source.read(split, f"the split behind ':' in '{name}'")
    if source.unsplit:
        raw = replace(raw, split=default_split)
    ids, _ = read_ids(raw)
    inputs = read_inputs(raw, _with_known_columns(spec, raw.table.column_names), modality)
    labels_N, names = np.full(len(ids), UNKNOWN_LABEL, dtype=np.int64), []
    soft_NC = None
    own: list[str] = []
    try:
        if spec.label in raw.table.column_names and modality == "multiple_choice":
            labels_N = choice_labels(raw, spec.label, list(inputs["choices"]), option_keys(raw, spec.choices))
        elif spec.label in raw.table.column_names:
            labels_N, own = coded_labels(raw, spec.label)
    except DataError:
        if labels:
            raise
    if modality != "multiple_choice":
        names = classes or spec.classes or own
        labels_N = mapped_labels(labels_N, own, names)
        soft_NC = read_soft_labels(raw, own, names) if labels else None
    slices = read_slices(raw, spec.slices, strict=same, inputs=inputs)
    return Samples(dataset, raw.split, inputs, labels_N, ids, list(names), slices, soft_NC, modality)  # type: ignore[arg-type]


def _held_out(spec: DataSpec, modality: str) -> Samples:
    """The test samples of the classes outside `spec.classes`: what a network that was trained without them never saw.

    Raises:
        DataError: no class is left out, or the test split has no sample of those.
    """
    if spec.classes is None or modality == "multiple_choice":
        raise DataError(
            f"'{HELD_OUT}' is the classes that data.classes leaves out, and here it leaves none out.",
            "List the classes to train on under data.classes.",
        )
    raw = _read(open_source(spec.name, spec, spec.config, spec.revision), spec, ("test",), False)["test"]
    codes_N, names = coded_labels(raw, spec.label)
    kept_N = (codes_N >= 0) & (mapped_labels(codes_N, names, spec.classes) < 0)
    if not kept_N.any():
        raise DataError(f"'{raw.where}' has no sample of a class outside data.classes.", f"Leave '{HELD_OUT}' out of data.ood.")
    ids, _ = read_ids(raw)
    labels_N = np.full(len(ids), UNKNOWN_LABEL, dtype=np.int64)
    inputs = read_inputs(raw, spec, modality)
    slices = read_slices(raw, spec.slices, strict=True, inputs=inputs)
    samples = Samples(
        HELD_OUT,
        "",
        inputs,
        labels_N,
        ids,
        list(spec.classes),
        slices,
        None,
        modality,  # type: ignore[arg-type]
    )
    return samples.subset(kept_N)


def _with_known_columns(spec: DataSpec, present: list[str]) -> DataSpec:
    """Another set need not call its columns as the recipe's set does: fall back to the usual names."""
    usual = {"text": "text", "image": "image", "question": "question", "choices": "choices"}
    changes: dict[str, Any] = {key: name for key, name in usual.items() if getattr(spec, key) not in present and name in present}
    if spec.text_pair is not None and spec.text_pair not in present:
        changes["text_pair"] = None
    return replace(spec, **changes) if changes else spec


def limited(samples: Samples, limit: int, seed: int) -> Samples:
    """At most `limit` rows, in proportion to the labels and in the order of the source; the same rows for the same seed."""
    if len(samples) <= limit:
        return samples
    return samples.subset(_stratified(samples.labels_N, limit, seed, f"limit/{samples.split}"))


def _stratified(labels_N: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of `count` rows, every label in its share as nearly as whole rows allow."""
    generator = np.random.default_rng((seed, zlib.crc32(purpose.encode())))
    rank_N = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        rank_N[generator.permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.lexsort((generator.random(len(labels_N)), rank_N))
    return np.sort(order[:count])


def _check_splits(spec: DataSpec, source: Source) -> None:
    named = [s for s in (spec.splits.train, spec.splits.validation, spec.splits.test) if s is not None]
    rows = [_read_from(split, spec, source) for split in named]
    same = [(first, again) for (i, first), (j, again) in combinations(enumerate(named), 2) if rows[i] & rows[j]]
    if same:
        first, again = same[0]
        raise DataError(
            f"data.splits uses '{first}' twice{f' (also as {again!r})' if again != first else ''}: "
            "what is trained or tuned on cannot judge the result.",
            f"Set data.splits.validation: null to hold out part of train. '{source.name}' has {', '.join(source.splits)}.",
        )


def _read_from(split: str, spec: DataSpec, source: Source) -> set[str]:
    """The files of a split, the same however it is written: 'train' and 'set:train', './set/train.csv' and '/here/set/train.csv'.

    Of sets that are not local, the set and its split.
    """
    bare = split.removeprefix(f"{spec.name}:")
    if bare not in source.splits and not _exists(split, source):
        return {split}
    name, inner = (spec.name, bare) if bare in source.splits else split_name(split)
    stored = local_splits(name)
    files = stored.get(inner or min(stored, default=""), [])
    return {str(path.resolve()) for path in files} or {f"{name}:{inner}"}


def _holds_out(spec: DataSpec, source: Source) -> bool:
    return spec.splits.validation is None or not _exists(spec.splits.validation, source)


def _exists(split: str, source: Source) -> bool:
    return split in source.splits or split_name(split)[1] is not None or _is_path(split)


def _is_path(split: str) -> bool:
    return "/" in split or split.endswith((".parquet", ".csv", ".tsv", ".jsonl", ".json"))


def _read(source: Source, spec: DataSpec, need: tuple[str, ...], hold_out: bool) -> dict[str, RawSplit]:
    """The stored splits behind `need`; validation is missing when it has to be cut out of train."""
    raws: dict[str, RawSplit] = {}
    for role in ROLES:
        wanted = role in need or (role == "train" and hold_out and "validation" in need)
        if not wanted or (role == "validation" and hold_out):
            continue
        split = getattr(spec.splits, role)
        if split is None or not _exists(split, source):
            missing = f"no {role} split is named" if split is None else f"'{source.name}' has no split '{split}'"
            raise DataError(
                f"The data has no {role} split: {missing}; there is {', '.join(source.splits)}.",
                f"Name one under data.splits.{role}: a split of this set, 'set:split', or a file.",
            )
        raws[role] = _read_split(source, split, spec, role)
    return raws


def _read_split(source: Source, split: str, spec: DataSpec, role: str) -> RawSplit:
    """A split of the source, or a file or 'set:split' named in its place; a file that is no split is the split of its role."""
    key = f"data.splits.{role}"
    if split in source.splits:
        raw = source.read(split, key)
        return replace(raw, split=role) if source.unsplit else raw
    name, inner = split_name(split)
    other = open_source(name, spec)
    raw = other.read(inner if inner is not None else other.splits[0], key)
    return replace(raw, split=role) if other.unsplit else raw


def _classes(raws: dict[str, RawSplit], source: Source, spec: DataSpec, modality: str) -> tuple[list[str], list[str]]:
    """(classes of the task, all class names of train).

    Train decides; it is read for that alone when the split at hand is another set's, or has no names in its types.
    """
    if modality == "multiple_choice":
        return [], []
    raw = raws.get("train") or next(iter(raws.values()))
    untold = raw.class_names(spec.label) is None or raw.dataset != spec.name
    if "train" not in raws and untold and _exists(spec.splits.train, source):
        raw = _read_split(source, spec.splits.train, spec, "train")
    _, names = coded_labels(raw, spec.label)
    return chosen_classes(names, spec.classes, raw.where), names


def _strict_samples(
    raw: RawSplit, spec: DataSpec, modality: str, classes: list[str], known: list[str], notes: list[str]
) -> Samples:
    """A split of the recipe's own set: every label must be one of train's; the classes not asked for are left out."""
    inputs = read_inputs(raw, spec, modality)
    ids, passed_over = read_ids(raw)
    if passed_over:
        notes.append(f"{raw.split}: column 'id' is not unique; row numbers are used as ids.")
    kept, soft_NC = np.ones(len(ids), dtype=bool), None
    if modality == "multiple_choice":
        labels_N = choice_labels(raw, spec.label, list(inputs["choices"]), option_keys(raw, spec.choices))
    else:
        codes_N, names = coded_labels(raw, spec.label)
        unknown = strangers(codes_N, names, known)
        if unknown:
            mend = "Correct the labels, or list the classes to keep under data.classes."
            if raw.dataset != spec.name:
                mend = f"The classes of '{raw.dataset}' are matched with those of '{spec.name}' by name."
            raise DataError(
                f"Label '{unknown[0]}' of '{raw.where}' does not occur in the training split"
                f"{f' (nor do {len(unknown) - 1} others)' if len(unknown) > 1 else ''}.",
                f"{mend} Training has {', '.join(known[:12])}.",
            )
        labels_N = mapped_labels(codes_N, names, classes)
        kept = (labels_N >= 0) | (codes_N < 0)
        soft_NC = read_soft_labels(raw, names, classes)
    samples = Samples(
        raw.dataset,
        raw.split,
        inputs,
        labels_N,
        ids,
        list(classes),
        read_slices(raw, spec.slices, strict=True, inputs=inputs),
        soft_NC,
        modality,  # type: ignore[arg-type]
    )
    if not kept.all():
        notes.append(f"{raw.split}: {int((~kept).sum())} rows of classes outside data.classes left out.")
        samples = samples.subset(kept)
    empty = sum(not text.strip() for name in ("text", "question") for text in samples.inputs.get(name, ()))
    if empty:
        notes.append(f"{raw.split}: {empty} empty texts are kept.")
    return samples


def _labelled(samples: Samples, notes: list[str]) -> Samples:
    """Without the rows of unknown label: nothing can be learned from them."""
    known = samples.labels_N >= 0
    if known.all():
        return samples
    notes.append(f"{samples.split}: {int((~known).sum())} rows without a label left out.")
    return samples.subset(known)


def _split_train(train: Samples, spec: DataSpec, source: Source, seed: int, notes: list[str]) -> tuple[Samples, Samples]:
    count = min(max(1, round(spec.holdout * len(train))), len(train) - 1)
    if count < 1:
        raise DataError(
            f"'{train.dataset}:{train.split}' has {len(train)} rows, too few to hold some out.", "Name a larger training split."
        )
    held = np.zeros(len(train), dtype=bool)
    held[_stratified(train.labels_N, count, seed, "holdout")] = True
    absent = "none is named" if spec.splits.validation is None else f"'{source.name}' has no split '{spec.splits.validation}'"
    notes.append(
        f"No validation split ({absent}; there is {', '.join(source.splits)}): "
        f"{count} of {len(train)} training rows held out, stratified by label, seed {seed}."
    )
    return train.subset(~held), replace(train.subset(held), split="validation")


def _check_filled(samples: Samples, role: str, notes: list[str]) -> None:
    where = f"'{samples.dataset}:{samples.split}'"
    if len(samples) == 0:
        raise DataError(f"The {role} split {where} has no usable rows.", "Look at the label column, and at data.classes.")
    unknown = int((samples.labels_N < 0).sum())
    if unknown == len(samples):
        raise DataError(f"No row of the {role} split {where} has a label.", f"Name a labelled split under data.splits.{role}.")
    if unknown:
        notes.append(f"{role}: {unknown} of {len(samples)} rows have no label.")
    if role == "train" and samples.classes:
        seen = np.bincount(samples.labels_N, minlength=len(samples.classes))
        missing = [name for name, n in zip(samples.classes, seen, strict=True) if n == 0]
        if missing:
            named = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            notes.append(f"train has no sample of {len(missing)} classes: {named}.")
