"""Target `averaged`: one plain checkpoint with the mean of the members' parameters."""

from __future__ import annotations

from pathlib import Path

from sve_cli.export.artifact import Artifact, Source, Target, write_checkpoint


def export_averaged(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/averaged/`.

    Raises:
        NotExportable: the members cannot be averaged into one network.
    """
    ensemble = source.ensemble
    loads_with = ensemble.backbone.loads_with
    artifact = Artifact("averaged", folder / "averaged", None, loads_with, claim="averaged", versus=("ensemble",))
    what = (
        f"One network with the mean of the parameters of {ensemble.n_members} members. It is not the ensemble: averaging "
        "parameters is not averaging probabilities, and it has no uncertainty between members. Its own numbers are below."
    )
    return [write_checkpoint(source, ensemble.averaged_model, artifact, what)]


TARGET = Target(lambda members, options: ["averaged"], export_averaged)
