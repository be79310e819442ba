"""`sve predict`: a run applied to new inputs -> labels, uncertainties and decisions. Opens no training data.

Shapes: N inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sve_cli.decisions import Decided
from sve_cli.predictions import Predictions
from sve_cli.rundir import RunDir
from sve_cli.samples import Samples
from sve_cli.workflows.predict_inputs import read_given, too_many_options
from sve_cli.workflows.serving import in_nats, open_run, set_names
from sve_cli.workflows.session import Log, run_recipe

BAD_SHOWN = 5


@dataclass(frozen=True)
class Answers:
    """What a run says to N inputs, and what could not be read.

    Attributes:
        rows: one dictionary an input, in their order: id, label, decision, confidence, entropy, aleatoric, epistemic, ood_score,
            set (class names; None where no conformal sets were fitted), choice (multiple choice: the text of the option that
            the label names; else None), probabilities (class -> probability), error (why it could not be read; then all but
            id are None).
        classes: class names.
        rules: the run's rules in words.
        missing: those of `rules` that say what the run cannot decide, and why.
    """

    rows: list[dict[str, Any]]
    classes: list[str]
    rules: list[str]
    missing: list[str]


def predict(run: RunDir, log: Log, *, source: str | None = None, texts: Sequence[str] = ()) -> Answers:
    """Apply a finished run to new inputs, with the rules of its newest evaluation.

    Args:
        source: an image, a folder of images, a csv, tsv, jsonl, json or parquet file with the recipe's columns, or a txt file
            with one text or one path of an image a line.
        texts: inputs given literally instead.

    Raises:
        SveError: an unfinished or changed run, inputs of another kind, or no input that can be read.
    """
    given = read_given(run_recipe(run), source, texts)  # before the model is opened, which takes longer
    model = open_run(run, log)
    given = given.without(too_many_options(given.samples, len(model.classes)))
    for sentence in given.notes:
        log.warn(sentence)
    for row, error in list(given.errors.items())[:BAD_SHOWN]:
        log.warn(f"'{row}' is left out: {error}")
    if len(given.errors) > BAD_SHOWN:
        log.warn(f"{len(given.errors) - BAD_SHOWN} more inputs are left out; their rows (--out, --json) say why.")
    predictions = model.outputs(given.samples, execution="merged")
    found = dict(zip(given.samples.ids_N, _rows(model.decide(predictions), predictions, given.samples), strict=True))
    empty = {key: None for key in next(iter(found.values()))}
    rows = [found.get(name) or {**empty, "id": name, "error": given.errors[name]} for name in given.ids]
    return Answers(rows, model.classes, model.rules, model.missing)


def _rows(decided: Decided, predictions: Predictions, samples: Samples) -> list[dict[str, Any]]:
    view, classes, options = decided.view, predictions.classes, samples.inputs.get("choices")
    nats = in_nats(view)
    rows = []
    for i, name in enumerate(predictions.ids_N):
        members = None if decided.sets_NC is None else set_names(decided, i, classes)
        rows.append(
            {
                "id": name,
                "label": classes[int(view.predicted_N[i])],
                "decision": decided.decision_N[i],
                "confidence": float(view.probs_NC[i, view.predicted_N[i]]),
                **{name: float(values_N[i]) for name, values_N in nats.items()},
                "ood_score": None if decided.ood_score_N is None else float(decided.ood_score_N[i]),
                "set": members,
                "choice": None if options is None else options[i][int(view.predicted_N[i])],
                "probabilities": {c: float(p) for c, p, e in zip(classes, view.probs_NC[i], view.exists_NC[i], strict=True) if e},
                "error": None,
            }
        )
    return rows
