"""Prove artifacts equal to the live object they claim to be; write them under their final name only then.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import SafetensorError

from sve_cli.certify.certificate import CERTIFICATE, TOLERANCE, Certificate, compare, logit_gap, scores
from sve_cli.certify.live import Live
from sve_cli.certify.process import Answer, Questions, Reload, in_fresh_process, questions
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckFailed, SveError
from sve_cli.export.artifact import CARD, REPORT, Artifact, require_complete
from sve_cli.metrics.aggregate import aggregate
from sve_cli.registry import EXPORTERS
from sve_cli.rundir import file_digest, write_json
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task

STAGING = ".sve-export-"
SAMPLES = 64


def export_and_certify(
    ensemble: Ensemble,
    task: Task,
    samples: Samples,
    targets: Sequence[str],
    out: Path,
    members: Sequence[int],
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
    exporters = {target: EXPORTERS.resolve(target) for target in dict.fromkeys(targets)}
    chosen = list(dict.fromkeys(members))
    absent = [m for m in chosen if not 0 <= m < ensemble.n_members]
    if absent or ("merged" in exporters and not chosen):
        what = f"There is no member {absent[0]}" if absent else "No member is chosen"
        raise SveError(f"{what}; this ensemble has the members 0 to {ensemble.n_members - 1}.", "Choose others with --members.")
    names = [f"member-{m}" for m in chosen] if "merged" in exporters else []
    require_free(out, [*names, *(t for t in exporters if t != "merged")], ensemble.backbone.spec.name)
    with staging_folder(out) as staging:
        artifacts: list[Artifact] = []
        for target, exporter in exporters.items():
            artifacts += exporter(ensemble, staging, chosen) if target == "merged" else exporter(ensemble, staging)
        certificates = certify_all(artifacts, ensemble, task, samples, command, n, reload)
        for artifact, certificate in zip(artifacts, certificates, strict=True):
            write_json(artifact.path / CERTIFICATE, certificate.to_json())
            with (artifact.path / CARD).open("a", encoding="utf-8") as f:
                f.write("\n" + certificate.to_markdown())
        final = [replace(artifact, path=out / artifact.path.name) for artifact in artifacts]
        for artifact, place in zip(artifacts, final, strict=True):
            os.replace(artifact.path, place.path)  # takes the place of an empty folder too
    return list(zip(final, certificates, strict=True))


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


def certify(
    artifact: Artifact,
    ensemble: Ensemble,
    task: Task,
    samples: Samples,
    command: str,
    n: int = SAMPLES,
    reload: Reload = in_fresh_process,
) -> Certificate:
    """Prove one artifact; see `certify_all`."""
    return certify_all([artifact], ensemble, task, samples, command, n, reload)[0]


def certify_all(
    artifacts: Sequence[Artifact],
    ensemble: Ensemble,
    task: Task,
    samples: Samples,
    command: str,
    n: int = SAMPLES,
    reload: Reload = in_fresh_process,
) -> list[Certificate]:
    """Reload artifacts in a fresh process and compare them with the live object on n of the samples. Nothing is written.

    Raises:
        CheckFailed: a file is missing, classes differ, or a logit differs by more than the tolerance.
    """
    if not len(samples):
        raise SveError("There are no samples to certify the export on.", "Name a test split with data.splits.test.")
    chosen = samples.subset(np.unique(np.linspace(0, len(samples) - 1, min(n, len(samples))).round().astype(np.int64)))
    for artifact in artifacts:
        require_complete(artifact.path, text=task.modality != "image")
    with TemporaryDirectory(prefix="sve-certify-") as scratch:
        asked = questions(task, chosen, Path(scratch))
        answers = reload([a.path for a in artifacts], asked)
    live = Live(ensemble, task, chosen)
    return [_judge(a, answer, asked, live, command) for a, answer in zip(artifacts, answers, strict=True)]


def _judge(artifact: Artifact, answer: Answer, asked: Questions, live: Live, command: str) -> Certificate:
    name = artifact.path.name
    if answer.missing:
        such = f"'{answer.missing[0]}' ({len(answer.missing)} such)"
        raise CheckFailed(f"The export '{name}' lacks, or does not use, the weight {such}.", REPORT)
    if answer.classes != asked.classes:
        detail = _first_difference(answer.classes, asked.classes)
        raise CheckFailed(f"The export '{name}' names other classes than the run: {detail}.", REPORT)
    expected = live.averaged() if artifact.member is None else live.member(artifact.member)
    predictions = live.predictions(expected[None])
    gaps = compare(predictions, answer.logits_NC)
    if not gaps.max_logit_gap <= TOLERANCE:
        raise CheckFailed(
            f"The export '{name}' does not compute what was evaluated: its logits differ by up to {gaps.max_logit_gap:.2e} "
            f"(allowed {TOLERANCE:.0e}), and {1 - gaps.agreement:.1%} of {gaps.n} predictions change."
            + _looks_like(answer, artifact, live),
            "Nothing was exported.",
        )
    base_gap = logit_gap(expected, live.base(artifact.member), live.encoded.mask_NC)
    notes = list(asked.notes)
    if base_gap <= TOLERANCE:
        notes.append("Its network computes the same as the untrained checkpoint; at most the head differs.")
    return Certificate(
        kind=artifact.kind,
        member=artifact.member,
        loads_with=artifact.loads_with,
        claim=_claim(artifact),
        dataset=live.samples.dataset,
        split=live.samples.split,
        gaps=gaps,
        gap_to_base=base_gap,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        classes=list(live.ensemble.classes),
        versus_ensemble=_versus_ensemble(live, expected) if artifact.member is None else None,
        notes=notes,
        files=file_digests(artifact.path),
        versions=answer.versions,
    )


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of an artifact, but for its card and its certificate, which are written later."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (CARD, CERTIFICATE))
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    if len(found) != len(expected):
        return f"it names {len(found)}, not {len(expected)}"
    at = next(i for i in range(len(found)) if found[i] != expected[i])
    return f"class {at} is '{found[at]}', not '{expected[at]}'"


def _claim(artifact: Artifact) -> str:
    if artifact.member is None:
        return "Compared with the mean of the members' weights and heads, computed anew; its numbers are not the ensemble's."
    return f"Compared with member {artifact.member} by its definition; its numbers are this member's, not the ensemble's."


def _looks_like(answer: Answer, artifact: Artifact, live: Live) -> str:
    """What the wrong logits are, when they are something known."""
    mask = live.encoded.mask_NC
    for m in range(live.ensemble.n_members):
        if m != artifact.member and logit_gap(live.member(m), answer.logits_NC, mask) <= TOLERANCE:
            return f" It is member {m}."
    heads: list[int | None] = [None, *range(live.ensemble.n_members)]
    for head in heads:
        if logit_gap(live.base(head), answer.logits_NC, mask) <= TOLERANCE:
            return f" It is the untrained checkpoint with {'the mean head' if head is None else f'the head of member {head}'}."
    return ""


def _versus_ensemble(live: Live, averaged_NC: np.ndarray) -> dict[str, Any]:
    """The averaged network beside the ensemble (mean probability) on the same samples."""
    ensemble = live.predictions(np.stack([live.member(m) for m in range(live.ensemble.n_members)]))
    averaged = live.predictions(averaged_NC[None])
    a, e = aggregate(averaged), aggregate(ensemble)
    exists = e.exists_NC
    kl_N = np.where(exists, e.probs_NC * (np.where(exists, e.log_probs_NC, 0) - np.where(exists, a.log_probs_NC, 0)), 0).sum(axis=1)
    return {
        "averaged": scores(averaged),
        "ensemble": scores(ensemble),
        "agreement": float((a.predicted_N == e.predicted_N).mean()),
        "mean_kl": float(kl_N.mean()),
    }
