"""`sve predict`: a run applied to new inputs -> labels, uncertainties and decisions. Opens no training data.

Shapes: N inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sve_cli.data.columns import read_ids, read_inputs
from sve_cli.data.tables import TABLE_SUFFIXES, RawSplit, features_of, image_files, read_image_folder, read_table
from sve_cli.decisions import Decided
from sve_cli.errors import DataError, SveError
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.recipe import Recipe
from sve_cli.rundir import RunDir
from sve_cli.samples import SUFFIXES, Samples, decode_image
from sve_cli.workflows.serving import open_run, set_names
from sve_cli.workflows.session import MODALITY, Log, run_recipe

BAD_SHOWN = 5


@dataclass(frozen=True)
class Answers:
    """What a run says to N inputs, and what could not be read.

    Attributes:
        rows: one dictionary an input, in their order: id, label, confidence, entropy, aleatoric, epistemic, ood_score, set (class
            names; None where no conformal sets were fitted), decision, probabilities (class -> probability), error (why it could
            not be read; then all but id are None).
        classes: class names.
        rules: the run's rules in words.
    """

    rows: list[dict[str, Any]]
    classes: list[str]
    rules: list[str]


def predict(run: RunDir, log: Log, *, source: str | None = None, texts: Sequence[str] = ()) -> Answers:
    """Apply a finished run to new inputs, with the rules of its newest evaluation.

    Args:
        source: an image, a folder of images, or a csv, tsv, jsonl, json or parquet file with the recipe's columns.
        texts: inputs given literally instead.

    Raises:
        SveError: an unfinished or changed run, inputs of another kind, or no input that can be read.
    """
    model = open_run(run, log)
    samples, errors = read_samples(run_recipe(run), source, texts)
    for row, error in list(errors.items())[:BAD_SHOWN]:
        log.warn(f"'{row}' is left out: {error}")
    if len(errors) > BAD_SHOWN:
        log.warn(f"{len(errors) - BAD_SHOWN} more inputs are left out; their rows say why.")
    good = samples.subset(np.array([name not in errors for name in samples.ids_N], dtype=bool))
    if not len(good):
        raise DataError("No input could be read.", next(iter(errors.values()), "Name a file that holds some."))
    predictions = model.outputs(good, execution="merged")
    decided = model.decide(predictions)
    for sentence in model.missing:
        log.warn(sentence)
    found = dict(zip(good.ids_N, _rows(decided, predictions), strict=True))
    empty = {key: None for key in next(iter(found.values()))}
    rows = [found.get(name) or {**empty, "id": name, "error": errors[name]} for name in samples.ids_N]
    return Answers(rows, model.classes, model.rules)


def read_samples(recipe: Recipe, source: str | None, texts: Sequence[str]) -> tuple[Samples, dict[str, str]]:
    """(inputs without labels, id -> why it cannot be read).

    Raises:
        SveError: nothing or two things are given, the file does not exist, or it holds another kind of input.
    """
    modality = MODALITY[recipe.task.name]
    if (source is None) == (not texts):
        raise SveError("Name what to predict: a file, a folder, or --text.", "Either INPUT or --text, not both.")
    if texts and (modality != "text" or recipe.data.text_pair):
        raise SveError("--text is for single texts, and this run reads something else.", "Give a csv, jsonl or parquet file.")
    spec = recipe.data
    raw = _literal(spec.text, texts) if source is None else _open(recipe, Path(source).expanduser(), modality)
    inputs = read_inputs(raw, spec, modality)
    ids, _ = read_ids(raw)
    if modality == "image" and source is not None and Path(source).expanduser().suffix not in TABLE_SUFFIXES:
        ids = [str(value) for value in raw.table.column(spec.image).to_pylist()]
    errors = _unreadable(raw, inputs, ids, spec.text if modality == "text" else "", modality)
    labels_N = np.full(len(ids), UNKNOWN_LABEL, dtype=np.int64)
    return Samples(raw.dataset, raw.split, inputs, labels_N, ids, [], modality=modality), errors  # type: ignore[arg-type]


def _literal(column: str, texts: Sequence[str]) -> RawSplit:
    return RawSplit("text", "input", pa.table({column: list(texts)}), "--text")


def _open(recipe: Recipe, path: Path, modality: str) -> RawSplit:
    spec = recipe.data
    if not path.exists():
        hint = "A text itself goes behind --text." if modality == "text" else f"Paths start at the current folder, {Path.cwd()}."
        raise DataError(f"There is no file or folder '{path}'.", hint)
    if path.is_file() and path.suffix in TABLE_SUFFIXES:
        strings = tuple(c for c in (spec.text, spec.text_pair, spec.question, spec.choices, "context", "id") if c)
        table = read_table(path, strings)
        return RawSplit(path.name, "input", table, str(path), path.parent, features_of(table))
    if modality != "image":
        raise DataError(f"'{path}' is no {', '.join(TABLE_SUFFIXES)} file, and this run reads no images.", "Convert it.")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return RawSplit(path.name, "input", pa.table({spec.image: [path.name]}), str(path), path.parent)
    if path.is_dir() and (image_files(path) or any(image_files(p) for p in path.iterdir() if p.is_dir())):
        return RawSplit(path.name, "input", read_image_folder(path, spec.image, spec.label), str(path), path)
    raise DataError(f"'{path}' holds no images.", f"Images end in {', '.join(SUFFIXES)}.")


def _unreadable(raw: RawSplit, inputs: dict[str, Sequence[Any]], ids: list[str], text: str, modality: str) -> dict[str, str]:
    """Id -> what is wrong with the row: an image that cannot be decoded, a text that is missing."""
    errors: dict[str, str] = {}
    if modality == "image":
        for row, name in enumerate(ids):
            try:
                decode_image(inputs["image"][row])
            except DataError as error:
                errors[name] = error.message
    elif modality == "text":
        for name, value in zip(ids, raw.column(text, "data.text").to_pylist(), strict=True):
            if value is None or not str(value).strip():
                errors[name] = "The text is empty."
    return errors


def _rows(decided: Decided, predictions: Predictions) -> list[dict[str, Any]]:
    view, classes = decided.view, predictions.classes
    rows = []
    for i, name in enumerate(predictions.ids_N):
        members = None if decided.sets_NC is None else set_names(decided, i, classes)
        rows.append(
            {
                "id": name,
                "label": classes[int(view.predicted_N[i])],
                "decision": decided.decision_N[i],
                "confidence": float(view.confidence_N[i]),
                "entropy": float(view.entropy_N[i]),
                "aleatoric": float(view.expected_entropy_N[i]),
                "epistemic": float(view.mutual_information_N[i]),
                "ood_score": None if decided.ood_score_N is None else float(decided.ood_score_N[i]),
                "set": members,
                "probabilities": {c: float(p) for c, p, e in zip(classes, view.probs_NC[i], view.exists_NC[i], strict=True) if e},
                "error": None,
            }
        )
    return rows
