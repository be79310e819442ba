"""Target `merged`: every member as one plain, complete checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sve_cli.export.artifact import Artifact, Options, Source, Target, write_checkpoint


def export_merged(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/member-<m>/` for each member asked for; one member is in memory at a time.

    Raises:
        NotExportable: this method's members are not plain networks.
        SveError: there is no such member.
    """
    ensemble, written = source.ensemble, []
    for m in source.members:
        artifact = Artifact("merged", folder / f"member-{m}", m, ensemble.backbone.loads_with)
        what = (
            f"Member {m} of an ensemble of {ensemble.n_members}, merged into a plain checkpoint. One member is not the ensemble: "
            "the ensemble's accuracy, calibration and uncertainty come from averaging the probabilities of all members."
        )
        written.append(write_checkpoint(source, partial(ensemble.member_model, m), artifact, what))
    return written


def _names(members: Sequence[int], options: Options) -> list[str]:
    return [f"member-{m}" for m in members]


TARGET = Target(_names, export_merged, per_member=True)
