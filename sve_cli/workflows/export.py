"""`sve export`: a run -> certified artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.certify import Certificate, export_and_certify
from sve_cli.certify.export import require_free
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.export import Artifact, Options, Source
from sve_cli.factors import FactorStore
from sve_cli.registry import EXPORTERS
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json
from sve_cli.statistics import without_weights
from sve_cli.workflows import distil
from sve_cli.workflows.choose_members import best_members
from sve_cli.workflows.evaluate import saved_predictions
from sve_cli.workflows.session import Log, Session, open_session, run_recipe

EXAMPLES = 8

FIDELITY_ROWS = 64


def _validation_inputs(session: Session, run: RunDir, ensemble: Ensemble, options: Options) -> Any:
    """lora: the validation inputs that --rank fidelity: measures on."""
    if not options.rank.startswith("fidelity"):
        return None
    encoded = session.split("validation")[1]
    return encoded.batch(np.unique(np.linspace(0, len(encoded) - 1, FIDELITY_ROWS).round().astype(np.int64)))


# target -> what must be made from the run before it can be written (a network to train, say); arrives as `source.prepared[target]`.
PREPARE: dict[str, Callable[[Session, RunDir, Ensemble, Options], Any]] = {
    "lora": _validation_inputs,
    "distilled": distil.prepare,
}


def export(
    run: RunDir,
    targets: Sequence[str],
    log: Log,
    *,
    out: Path | None = None,
    members: Sequence[int] | None = None,
    best: int | None = None,
    options: Options | None = None,
    command: str = "",
) -> list[tuple[Artifact, Certificate]]:
    """Write, reload in a fresh process and certify each target; what fails its certificate is removed.

    Args:
        members: for targets that write one folder a member: which; None: all.
        best: instead of `members`: so many, chosen on validation (see `choose_members.best_members`).

    Raises:
        SveError: unknown target or member, a folder in the way.
        CheckFailed: an artifact is not what it claims to be.
    """
    for target in targets:
        EXPORTERS[target]  # refuses an unknown name before any work
    check_seal(run.path)
    recipe = run_recipe(run)
    lock = read_json(run.path / "recipe.lock.json")
    session = open_session(recipe, log, lock["limit"], need=("train", "validation", "test"))
    ensemble = session.load_run(run)
    chosen = _members(run, session, ensemble, members, best)
    samples, encoded = session.split("test")
    wanted = options or Options()
    source = Source(
        ensemble,
        tuple(chosen),
        wanted,
        recipe,
        lock,
        *_evaluated(run),
        lambda: encoded.batch(np.arange(min(EXAMPLES, len(encoded)))),
        FactorStore(),
    )
    place = out or run.path / "exports"
    names = [name for target in targets for name in EXPORTERS.resolve(target).names(source)]
    require_free(place, names, recipe.model.name)  # before a network is trained for nothing
    prepared = {target: PREPARE[target](session, run, ensemble, wanted) for target in targets if target in PREPARE}
    return export_and_certify(replace(source, prepared=prepared), session.task, samples, targets, place, command)


def _members(run: RunDir, session: Session, ensemble: Ensemble, members: Sequence[int] | None, best: int | None) -> Sequence[int]:
    if best is None:
        chosen = range(ensemble.n_members) if members is None else members
        wrong = [m for m in chosen if not 0 <= m < ensemble.n_members]
        if wrong:
            raise SveError(f"There is no member {wrong[0]}; this run has members 0 to {ensemble.n_members - 1}.")
        return chosen
    if not 1 <= best <= ensemble.n_members:
        raise SveError(f"--members best:{best} asks for {best} members, and this run has {ensemble.n_members}.")
    digest = file_digest(run.path / "ensemble.safetensors")
    validation = saved_predictions(run, "validation", digest) or session.predict(ensemble, "validation", digest)
    found, sentence = best_members(validation, best, session.recipe.seed, without_weights(session.recipe.evaluate.aggregate))
    session.log.say(sentence)
    return found


def _evaluated(run: RunDir) -> tuple[str, str]:
    """The newest evaluation's fitted state as JSON text, and how it aggregates; the defaults where there is none."""
    evaluation = next(iter(run.evaluations()), None)
    if evaluation is None:
        return "", "probs"
    how = read_json(evaluation / "report.json")["provenance"]["aggregate"]
    return (evaluation / "posthoc.json").read_text(encoding="utf-8"), str(how)
