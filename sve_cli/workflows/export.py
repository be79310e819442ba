"""`sve export`: a run -> certified artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sve_cli.certify import Certificate, export_and_certify
from sve_cli.certify.export import require_dtype, require_free, require_members
from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.export import Artifact, Options, Source, Target
from sve_cli.factors import FactorStore
from sve_cli.registry import EXPORTERS
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json
from sve_cli.statistics import without_weights
from sve_cli.workflows import distil
from sve_cli.workflows.choose_members import best_members
from sve_cli.workflows.export_results import results_of_run
from sve_cli.workflows.session import Log, Session, open_session, run_recipe
from sve_cli.workflows.stored import saved_predictions, stored_aggregate

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
    exporters: dict[str, Target] = {
        target: EXPORTERS.resolve(target) for target in targets
    }  # refuses an unknown name before any work
    check_seal(run.path)
    recipe = run_recipe(run)
    lock = read_json(run.path / "recipe.lock.json")
    wanted, place, count = options or Options(), out or run.path / "exports", recipe.method.members
    chosen = _before_data(exporters.values(), members, best, count)
    require_dtype(wanted.dtype, exporters)
    require_free(place, [name for e in exporters.values() for name in e.names(chosen, wanted)], recipe.model.name)
    session = open_session(recipe, log, lock["limit"], need=("train", "validation", "test"))
    ensemble = session.load_run(run)
    if best is not None:
        chosen = _best(run, session, ensemble, best)
        require_free(place, [name for e in exporters.values() for name in e.names(chosen, wanted)], recipe.model.name)
    samples, encoded = session.split("test")
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
    prepared = {target: PREPARE[target](session, run, ensemble, wanted) for target in targets if target in PREPARE}
    results = results_of_run(session, run, ensemble, prepared, source.aggregate)
    return export_and_certify(replace(source, prepared=prepared, results=results), session.task, samples, targets, place, command)


def _before_data(targets: Iterable[Target], members: Sequence[int] | None, best: int | None, count: int) -> Sequence[int]:
    """The members asked for; those that --members best:K will choose are not known yet, and are none here.

    Raises:
        SveError: members that the run does not have.
    """
    if best is not None:
        if not 1 <= best <= count:
            raise SveError(f"--members best:{best} asks for {best} members, and this run has {count}.")
        return ()
    chosen = tuple(range(count) if members is None else members)
    require_members(chosen, count, targets)
    return chosen


def _best(run: RunDir, session: Session, ensemble: Ensemble, k: int) -> Sequence[int]:
    digest = file_digest(run.path / "ensemble.safetensors")
    validation = saved_predictions(run, "validation", digest) or session.predict(ensemble, "validation", digest)
    found, sentence = best_members(validation, k, session.recipe.seed, without_weights(session.recipe.evaluate.aggregate))
    session.log.say(sentence)
    return found


def _evaluated(run: RunDir) -> tuple[str, str]:
    """The newest evaluation's fitted state as JSON text, and how it aggregates; the defaults where there is none."""
    evaluation = next(iter(run.evaluations()), None)
    if evaluation is None:
        return "", "probs"
    return (evaluation / "posthoc.json").read_text(encoding="utf-8"), stored_aggregate(evaluation)
