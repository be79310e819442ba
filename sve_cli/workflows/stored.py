"""What earlier evaluations of a run left behind: predictions, and what was fitted."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from sve_cli.errors import SveError
from sve_cli.posthoc.state import Posthoc
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec
from sve_cli.rundir import RunDir, file_digest, read_json
from sve_cli.statistics import without_weights
from sve_cli.workflows.session import run_recipe, state_of


def saved_predictions(
    run: RunDir, name: str, model_digest: str, features: bool = False, batch_size: int | None = None
) -> Predictions | None:
    """Predictions on a split or set from an earlier evaluation of the run, made by the trained state with this digest.

    Those of a local set whose files were changed since are not taken.

    Args:
        features: only those that kept features.
        batch_size: only those made in batches of this size.
    """
    state = state_of(name)
    for folder in run.evaluations():
        stem = folder / "predictions" / slug(name)
        if stem.with_name(stem.name + ".safetensors").is_file() and (batch_size is None or batch_size == _batch_size(run, folder)):
            found = Predictions.load(stem)
            same = found.model_digest == model_digest and (not state or found.source_state == state)
            if same and not (features and found.features_MNF is None):
                return found
    return None


def evaluation_folder(run: RunDir, spec: EvaluateSpec, ood: dict[str, str]) -> Path:
    """Where an evaluation lies or will lie: named by a hash of what it depends on."""
    now = {name if not (state := state_of(name)) else f"{name}@{state}": group for name, group in ood.items()}
    sets = now if any(ood.values()) else list(now)
    content = json.dumps([asdict(spec), sets, file_digest(run.path / "ensemble.safetensors")], sort_keys=True)
    return run.path / "evaluations" / hashlib.sha256(content.encode()).hexdigest()[:12]


def stored_posthoc(evaluation: Path) -> Posthoc:
    """What an evaluation fitted.

    Raises:
        SveError: it cannot be read, or is of another schema.
    """
    path = evaluation / "posthoc.json"
    try:
        return Posthoc.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SveError(f"Cannot read '{path}' ({error}).", f"Remove '{evaluation}' and evaluate the run again.") from error


def stored_aggregate(evaluation: Path) -> str:
    """How an evaluation averages the members, with the weights it fitted."""
    return str(read_json(evaluation / "report.json")["provenance"].get("aggregate") or "probs")


def run_aggregate(run: RunDir) -> str:
    """How the run's newest evaluation averages the members; the recipe's way, without weights, where there is none."""
    evaluation = next(iter(run.evaluations()), None)
    return without_weights(run_recipe(run).evaluate.aggregate) if evaluation is None else stored_aggregate(evaluation)


def _batch_size(run: RunDir, evaluation: Path) -> int:
    """Of an evaluation's predictions; older evaluations do not say it, and used the recipe's."""
    stored = read_json(evaluation / "report.json")["provenance"].get("batch_size")
    return int(stored or run_recipe(run).evaluate.batch_size)


def slug(name: str) -> str:
    """A file name for a split or set name; different names never collide."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[-60:]  # no dots: what follows one would be cut as a suffix
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
