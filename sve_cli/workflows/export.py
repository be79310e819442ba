"""`sve export`: a run -> certified artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sve_cli.certify import Certificate, export_and_certify
from sve_cli.errors import SveError
from sve_cli.export.artifact import Artifact
from sve_cli.registry import EXPORTERS
from sve_cli.rundir import RunDir, check_seal, read_json
from sve_cli.workflows.session import Log, open_session, run_recipe


def export(
    run: RunDir,
    targets: Sequence[str],
    log: Log,
    *,
    out: Path | None = None,
    members: Sequence[int] | None = None,
    command: str = "",
) -> list[tuple[Artifact, Certificate]]:
    """Write, reload in a fresh process and certify each target; what fails its certificate is removed.

    Raises:
        SveError: unknown target or member, a folder in the way.
        CheckFailed: an artifact is not what it claims to be.
    """
    for target in targets:
        EXPORTERS[target]  # refuses an unknown name before any work
    check_seal(run.path)
    recipe = run_recipe(run)
    limit = read_json(run.path / "recipe.lock.json")["limit"]
    session = open_session(recipe, log, limit, need=("train", "validation", "test"))
    ensemble = session.load_run(run)
    chosen = list(range(ensemble.n_members)) if members is None else list(members)
    wrong = [m for m in chosen if not 0 <= m < ensemble.n_members]
    if wrong:
        raise SveError(f"There is no member {wrong[0]}; this run has members 0 to {ensemble.n_members - 1}.")
    samples, _ = session.split("test")
    return export_and_certify(ensemble, session.task, samples, targets, out or run.path / "exports", chosen, command)
