"""What an exported artifact scores on the run's whole test split, for its card; from the run's evaluation where that knows it.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from sve_cli.certify.certificate import SCORES, definitions, scores
from sve_cli.ensemble import Ensemble
from sve_cli.export import Artifact
from sve_cli.export.artifact import averaging
from sve_cli.export.card import base_name
from sve_cli.export.card_metadata import Results
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.rundir import RunDir, file_digest
from sve_cli.workflows.distil_scores import averaged_predictions
from sve_cli.workflows.session import Session
from sve_cli.workflows.stored import saved_predictions


def results_of_run(
    session: Session, run: RunDir, ensemble: Ensemble, prepared: Mapping[str, Any], how: str = "probs"
) -> Callable[[Artifact], Results | None]:
    """Artifact -> its scores; None where only its certificate knows some (a member cut or rounded).

    An averaged network is run over the whole split once; nothing else is computed.

    Args:
        how: the evaluation's way of averaging the members.
    """
    test = saved_predictions(run, "test", file_digest(run.path / "ensemble.safetensors"))
    if test is None or not scores(test):
        return lambda artifact: None
    averaged = cache(lambda: scores(averaged_predictions(session, ensemble, "test")))
    whole, labelled = {"ensemble": scores(test, how)}, int((test.labels_N != UNKNOWN_LABEL).sum())  # what the scores are over

    def results(artifact: Artifact) -> Results | None:
        claim, member, n = artifact.claim, artifact.member, labelled
        if claim in ("members", "ensemble"):
            rows = whole
        elif claim == "member" and member is not None:
            rows = {f"member {member}": scores(of_member(test, member)), **whole}
        elif claim == "averaged":
            rows = {"averaged": averaged(), **whole}
        elif claim == "live":
            systems = prepared["distilled"].facts["systems"]
            rows = {name: {key: systems[name][key] for key in SCORES} for name in ("distilled", "ensemble")}
            n = prepared["distilled"].facts["test_samples"]
        else:
            return None
        way = f"is {averaging(how)}, without a temperature" if claim != "live" else "is at its temperature"
        note = f"The ensemble's row {way}."
        return Results(base_name(session.recipe.data.name), "test", n, rows, definitions(), note)

    return results


def of_member(predictions: Predictions, member: int) -> Predictions:
    """One member's predictions."""
    return replace(predictions, logits_MNC=predictions.logits_MNC[[member]], features_MNF=None)
