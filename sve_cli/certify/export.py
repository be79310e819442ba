"""Write artifacts, prove them, and give them their final names only then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from sve_cli.certify.certificate import CERTIFICATE, Certificate
from sve_cli.certify.judge import SAMPLES, certify_all
from sve_cli.certify.process import Reload, in_fresh_process
from sve_cli.errors import SveError
from sve_cli.export.artifact import CARD, Artifact, Source, Target
from sve_cli.registry import EXPORTERS
from sve_cli.rundir import write_json
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task

STAGING = ".sve-export-"


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

    A failure leaves nothing behind; a kill leaves a hidden folder that the next export removes.

    Raises:
        SveError: no such target or member, the place is taken or is the source checkpoint, or the disk refuses.
        NotExportable: this method has no such artifact.
        CheckFailed: an artifact is not what it claims to be.
    """
    exporters: dict[str, Target] = {target: EXPORTERS.resolve(target) for target in dict.fromkeys(targets)}
    source = replace(source, members=tuple(dict.fromkeys(source.members)))
    require_members(source, any(t.per_member for t in exporters.values()))
    names = [name for target in exporters.values() for name in target.names(source)]
    require_free(out, names, source.ensemble.backbone.spec.name)
    with staging_folder(out) as staging:
        artifacts = [artifact for target in exporters.values() for artifact in target.write(source, staging)]
        certificates = certify_all(artifacts, source.ensemble, task, samples, command, n, reload)
        for artifact, certificate in zip(artifacts, certificates, strict=True):
            write_json(artifact.path / CERTIFICATE, certificate.to_json())
            with (artifact.path / CARD).open("a", encoding="utf-8") as f:
                f.write("\n" + certificate.to_markdown())
        final = [replace(artifact, path=out / artifact.path.name) for artifact in artifacts]
        for artifact, place in zip(artifacts, final, strict=True):
            os.replace(artifact.path, place.path)  # takes the place of an empty folder too
    return list(zip(final, certificates, strict=True))


def require_members(source: Source, per_member: bool) -> None:
    """Refuse members that do not exist, and none where one folder a member is to be written.

    Raises:
        SveError: saying which.
    """
    count = source.ensemble.n_members
    absent = [m for m in source.members if not 0 <= m < count]
    if absent or (per_member and not source.members):
        what = f"There is no member {absent[0]}" if absent else "No member is chosen"
        raise SveError(f"{what}; this ensemble has the members 0 to {count - 1}.", "Choose others with --members.")


def require_free(out: Path, names: Sequence[str], source: str) -> None:
    """Refuse places that hold something already, and the source checkpoint.

    Raises:
        SveError: saying which folder is in the way.
    """
    place, origin = out.expanduser().resolve(), Path(source).expanduser()
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


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A hidden folder inside `out`, removed at the end; leftovers of killed exports are removed at the start.

    Raises:
        SveError: the disk refuses.
    """
    staging, fresh = out / f"{STAGING}{os.getpid()}", not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(f"{STAGING}*"):
            if not _alive(leftover.name.removeprefix(STAGING)):
                shutil.rmtree(leftover)
        staging.mkdir()
        yield staging
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SveError(f"Cannot export to '{out}' ({reason}).", "Check the disk, or choose another --out.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _alive(pid: str) -> bool:
    """Whether another process of this number runs here; a leftover of our own number is nobody's."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
