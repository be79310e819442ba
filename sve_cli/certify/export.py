"""Write artifacts, prove them, and give them their final names only then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sve_cli.certified import CERTIFICATE
from sve_cli.certify.certificate import Certificate, results_of
from sve_cli.certify.judge import SAMPLES, certify_all
from sve_cli.certify.process import Reload, in_fresh_process
from sve_cli.certify.staging import held_entries, staging_folder
from sve_cli.errors import SveError
from sve_cli.export.artifact import DTYPES, Artifact, Source, Target
from sve_cli.export.card_metadata import finish_card
from sve_cli.registry import EXPORTERS, nearest
from sve_cli.rundir import write_json
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task


def export_and_certify(
    source: Source,
    task: Task,
    samples: Samples,
    targets: Sequence[str],
    out: Path,
    command: str,
    n: int = SAMPLES,
    reload: Reload = in_fresh_process,
) -> list[tuple[Artifact, Certificate]]:
    """Write each target below `out`, prove every artifact, and only then give all of them their final names.

    A failure leaves nothing behind; a kill leaves a hidden folder that nothing opens and the next export removes; see `staging`.

    Raises:
        SveError: no such target or member, the place is taken or is the source checkpoint, or the disk refuses.
        NotExportable: this method has no such artifact.
        CheckFailed: an artifact is not what it claims to be.
    """
    exporters: dict[str, Target] = {target: EXPORTERS.resolve(target) for target in dict.fromkeys(targets)}
    source = replace(source, members=tuple(dict.fromkeys(source.members)))
    require_members(source.members, source.ensemble.n_members, exporters.values())
    require_dtype(source.options.dtype, exporters)
    entries = {name: t.entry for t in exporters.values() for name in t.names(source.members, source.options)}
    require_free(out, list(entries), source.ensemble.backbone.spec.name)
    with staging_folder(out) as staging, held_entries(staging, entries) as release:
        artifacts = [artifact for target in exporters.values() for artifact in target.write(source, staging)]
        certificates = certify_all(artifacts, source.ensemble, task, samples, command, n, reload)
        certificates = [_complete(source, a, certificate) for a, certificate in zip(artifacts, certificates, strict=True)]
        final = [replace(artifact, path=out / artifact.path.name) for artifact in artifacts]
        for artifact, place in zip(artifacts, final, strict=True):
            release(artifact.path.name)
            os.replace(artifact.path, place.path)  # takes the place of an empty folder too
    return list(zip(final, certificates, strict=True))


def _complete(source: Source, artifact: Artifact, certificate: Certificate) -> Certificate:
    """Write the certificate, with the artifact's scores, and the rest of its card."""
    results = source.results(artifact) or results_of(certificate)
    if results is not None:
        certificate = replace(certificate, facts={**certificate.facts, "test": results.to_json()})
    write_json(artifact.path / CERTIFICATE, certificate.to_json())
    finish_card(source, artifact, results, certificate.to_markdown())
    return certificate


def require_members(members: Sequence[int], count: int, targets: Iterable[Target]) -> None:
    """Refuse members that an ensemble of `count` does not have, and none where one folder a member is to be written.

    Raises:
        SveError: saying which.
    """
    absent = [m for m in members if not 0 <= m < count]
    if absent or (not members and any(target.per_member for target in targets)):
        what = f"There is no member {absent[0]}" if absent else "No member is chosen"
        raise SveError(f"{what}; this ensemble has the members 0 to {count - 1}.", "Choose others with --members.")


def require_dtype(dtype: str, targets: Mapping[str, Target]) -> None:
    """Refuse a type that is none, and targets that do not store it.

    Raises:
        SveError: saying why.
    """
    if dtype not in DTYPES:
        raise SveError(f"--dtype '{dtype}' is no type of weights.", nearest(dtype, list(DTYPES)))
    for name, target in targets.items():
        if DTYPES[dtype] is not None and target.float32_because:
            raise SveError(f"The target {name} is float32 only: {target.float32_because}", f"Export {name} without --dtype.")


def require_free(out: Path, names: Sequence[str], source: str) -> None:
    """Refuse places that hold something already, and the source checkpoint.

    Raises:
        SveError: saying which folder is in the way.
    """
    place, origin = out.resolve(), Path(os.path.expanduser(source))
    if origin.exists() and (place == origin.resolve() or origin.resolve() in place.parents):
        raise SveError(f"'{out}' is the source checkpoint '{source}', which is never written to.", "Choose another --out.")
    if (place / "config.json").exists():
        raise SveError(f"'{out}' is a checkpoint itself, and nothing is exported into one.", "Choose another --out.")
    if place.exists() and not place.is_dir():
        raise SveError(f"'{out}' is a file.", "Choose another --out.")
    for name in names:
        taken = place / name
        if taken.is_symlink() or (taken.exists() and (not taken.is_dir() or any(taken.iterdir()))):
            raise SveError(f"'{out / name}' exists and is not empty.", "Remove it, or choose another --out.")
