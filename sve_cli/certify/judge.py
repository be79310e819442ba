"""Judge artifacts: reloaded in a fresh process, against the live object they claim to be.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sve_cli.certified import file_digests
from sve_cli.certify.certificate import Certificate, Gaps, beside, compare, logit_gap
from sve_cli.certify.claims import Outputs, claim_of
from sve_cli.certify.live import Live
from sve_cli.certify.process import Answer, Questions, Reload, in_fresh_process, questions
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckFailed, SveError
from sve_cli.export.artifact import Artifact, Target
from sve_cli.export.card import base_name
from sve_cli.export.complete import REPORT
from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.registry import EXPORTERS
from sve_cli.samples import Samples
from sve_cli.tasks.common import Task

SAMPLES = 64


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
        target: Target = EXPORTERS.resolve(artifact.kind)
        target.check(artifact.path, task.modality != "image")
    with TemporaryDirectory(prefix="sve-certify-") as scratch:
        asked = questions(task, chosen, Path(scratch))
        answers = reload(artifacts, asked)
    live = Live(ensemble, task, chosen)
    return [_judge(a, answer, asked, live, command) for a, answer in zip(artifacts, answers, strict=True)]


def _judge(artifact: Artifact, answer: Answer, asked: Questions, live: Live, command: str) -> Certificate:
    name, claim = artifact.path.name, claim_of(artifact)
    if answer.missing:
        such = f"'{answer.missing[0]}' ({len(answer.missing)} such)"
        raise CheckFailed(f"The export '{name}' lacks, or does not use, the weight {such}.", REPORT)
    if answer.classes != asked.classes:
        detail = _first_difference(answer.classes, asked.classes)
        raise CheckFailed(f"The export '{name}' names other classes than the run: {detail}.", REPORT)
    expected = _with_what_follows(claim.outputs(live, artifact), answer.outputs, live)
    gaps = _gaps(name, live, expected, answer.outputs)
    if not gaps.worst <= artifact.tolerance:
        what = "logits" if gaps.worst == gaps.max_logit_gap else max(gaps.outputs, key=lambda k: gaps.outputs[k])
        raise CheckFailed(
            f"The export '{name}' does not compute what was evaluated: its {what.replace('_', ' ')} differ by up to "
            f"{gaps.worst:.2e} (allowed {artifact.tolerance:.0e}), and {1 - gaps.agreement:.1%} of {gaps.n} predictions change."
            + _looks_like(answer, artifact, live),
            "Nothing was exported.",
        )
    base_gap = None if claim.base is None else _largest(claim.base(live, artifact), expected, live)
    notes = list(asked.notes)
    if base_gap is not None and base_gap <= artifact.tolerance:
        notes.append("Its network computes the same as the untrained checkpoint; at most the head differs.")
    mine = _predictions(live, expected)
    versus = {key: beside(artifact.kind, mine, key, _other(live, artifact, key)) for key in artifact.versus}
    if artifact.calibrated[0] != 1.0 and "ensemble" in versus:
        versus["ensemble"]["temperature"] = artifact.calibrated[0]
    return Certificate(
        kind=artifact.kind,
        member=artifact.member,
        loads_with=artifact.loads_with,
        claim=claim.sentence(artifact),
        dataset=base_name(live.samples.dataset),
        split=live.samples.split,
        gaps=gaps,
        gap_to_base=base_gap,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        classes=list(live.ensemble.classes),
        tolerance=artifact.tolerance,
        versus_ensemble=versus.get("ensemble"),
        versus_member=versus.get("member"),
        facts=artifact.facts,
        notes=notes,
        files=file_digests(artifact.path),
        versions=answer.versions,
    )


def _gaps(name: str, live: Live, expected: Outputs, found: Outputs) -> Gaps:
    """Every output the claim has, compared.

    Raises:
        CheckFailed: an output is missing, of another shape, or not finite.
    """
    absent, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if absent:
        raise CheckFailed(f"The export '{name}' does not put out '{absent[0]}'.", REPORT)
    if unknown:
        raise CheckFailed(f"The export '{name}' puts out '{unknown[0]}', which nothing is compared with.", REPORT)
    gaps = compare(_predictions(live, expected), found["logits"])
    return replace(gaps, outputs={key: _gap(expected[key], found[key], live) for key in sorted(expected) if key != "logits"})


def _with_what_follows(expected: Outputs, found: Outputs, live: Live) -> Outputs:
    """With the probabilities and the entropy (in nats) of one network's logits, where the artifact puts them out too."""
    also = ({"probabilities", "entropy"} & found.keys()) - expected.keys()
    if not also:
        return expected
    view = aggregate(_predictions(live, expected))
    of_logits = {"probabilities": view.probs_NC, "entropy": view.entropy_N}
    return {**expected, **{name: of_logits[name] for name in also}}


def _predictions(live: Live, outputs: Outputs) -> Predictions:
    logits = outputs["logits"]
    return live.predictions(logits[None] if logits.ndim == 2 else logits)


def _gap(a: np.ndarray, b: np.ndarray, live: Live) -> float:
    return logit_gap(a, b, live.encoded.mask_NC if a.ndim == 2 and live.encoded.mask_NC is not None else None)


def _largest(a: Outputs, b: Outputs, live: Live) -> float:
    """The largest gap of any output, members apart."""
    gaps = []
    for key, value in a.items():
        pairs = zip(value, b[key], strict=True) if value.ndim == 3 else [(value, b[key])]
        gaps += [_gap(mine, other, live) for mine, other in pairs]
    return max(gaps)


def _other(live: Live, artifact: Artifact, key: str) -> Predictions:
    """What an artifact is shown beside: all members (as it says they are calibrated), or its own in full."""
    members = list(range(live.ensemble.n_members)) if key == "ensemble" or artifact.member is None else [artifact.member]
    found = live.predictions(np.stack([live.member(m) for m in members]))
    temperature, how = artifact.calibrated
    if key != "ensemble" or (temperature == 1.0 and how == "probs"):
        return found
    view = aggregate(replace(found, logits_MNC=found.logits_MNC / temperature), how)
    return live.predictions(np.where(view.exists_NC, view.log_probs_NC, 0)[None].astype(np.float32))


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    if len(found) != len(expected):
        return f"it names {len(found)}, not {len(expected)}"
    at = next(i for i in range(len(found)) if found[i] != expected[i])
    return f"class {at} is '{found[at]}', not '{expected[at]}'"


def _looks_like(answer: Answer, artifact: Artifact, live: Live) -> str:
    """What the wrong outputs are, when they are something known."""
    claim, members = claim_of(artifact), range(live.ensemble.n_members)
    found = answer.outputs
    if "logits" in found and found["logits"].ndim == 3:
        for i, logits_NC in enumerate(found["logits"]):
            if words := _which(logits_NC, live, None if i >= len(members) else i, artifact.tolerance):
                return f" Its member {i} is {words}."
        return ""
    if "logits" in found and (words := _which(found["logits"], live, artifact.member, artifact.tolerance)):
        return f" It is {words}."
    if artifact.member is not None:  # the same thing made of another member, cut at a rank say
        for m in members:
            if m != artifact.member and _same(claim.outputs(live, replace(artifact, member=m)), found, live, artifact.tolerance):
                return f" It is member {m}."
    if claim.base is not None and _same(claim.base(live, artifact), found, live, artifact.tolerance):
        return " It is the untrained checkpoint with the trained heads."
    return ""


def _which(logits_NC: np.ndarray, live: Live, own: int | None, tolerance: float) -> str:
    mask = live.encoded.mask_NC
    for m in range(live.ensemble.n_members):
        if m != own and logit_gap(live.member(m), logits_NC, mask) <= tolerance:
            return f"member {m}"
    heads: list[int | None] = [None, *range(live.ensemble.n_members)]
    for head in heads:
        if logit_gap(live.base(head), logits_NC, mask) <= tolerance:
            return f"the untrained checkpoint with {'the mean head' if head is None else f'the head of member {head}'}"
    return ""


def _same(a: Outputs, found: dict[str, Any], live: Live, tolerance: float) -> bool:
    if any(key not in found or found[key].shape != value.shape for key, value in a.items()):
        return False
    return _largest(a, {key: found[key] for key in a}, live) <= tolerance
