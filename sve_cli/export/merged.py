"""Target `merged`: every member as one plain, complete checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sve_cli.ensemble import Ensemble
from sve_cli.export.artifact import Artifact, write_checkpoint


def export_merged(ensemble: Ensemble, folder: Path, members: Sequence[int]) -> list[Artifact]:
    """Write `folder/member-<m>/` for each member asked for; one member is in memory at a time.

    Raises:
        NotExportable: this method's members are not plain networks.
        SveError: there is no such member.
    """
    written = []
    for m in members:
        artifact = Artifact("merged", folder / f"member-{m}", m, ensemble.backbone.loads_with)
        what = (
            f"Member {m} of an ensemble of {ensemble.n_members}, merged into a plain checkpoint. One member is not the ensemble: "
            "the ensemble's accuracy, calibration and uncertainty come from averaging the probabilities of all members."
        )
        written.append(write_checkpoint(ensemble, ensemble.member_model(m), artifact, what))
    return written
