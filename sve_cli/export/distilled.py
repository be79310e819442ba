"""Target `distilled`: one plain checkpoint with the ensemble's calibrated mean, and its uncertainty from one output more.

`workflows.distil` trains the network; this writes it. The folder is an ordinary checkpoint with C logits. `evidence.safetensors`
beside it holds weight (1,) and bias (1,) of the log-precision on log(entropy + 1e-3), entropy of the class probabilities in nats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor, nn

from sve_cli.backbone import Backbone
from sve_cli.errors import CheckFailed, NotExportable
from sve_cli.export.artifact import Artifact, LiveOutputs, Source, Target, write_card
from sve_cli.export.card import usage
from sve_cli.export.complete import REPORT, require_complete, require_files

EVIDENCE = "evidence.safetensors"
EVIDENCE_FORMAT = "sve-evidence/2, log-precision = weight log(entropy in nats + 1e-3) + bias"


class TrainedStudent(Protocol):
    """The distilled network."""

    def model(self) -> nn.Module:
        """The library's own classifier with C logits."""

    def evidence(self) -> dict[str, Tensor]:
        """weight (1,) and bias (1,) of the log-precision."""


class Prepared(Protocol):
    """What `workflows.distil` made: see its `Distilled`."""

    student: Any
    live: LiveOutputs
    facts: dict[str, Any]
    lines: str
    calibrated: tuple[float, str]


def export_distilled(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/distilled/`.

    Raises:
        NotExportable: there is no distilled network.
    """
    prepared: Prepared | None = source.prepared.get("distilled")
    if prepared is None:
        raise NotExportable("The target distilled needs a network trained on a run's predictions.", "Export from a run's folder.")
    backbone, student = source.ensemble.backbone, prepared.student
    artifact = Artifact(
        "distilled", folder / "distilled", None, backbone.loads_with, claim="live", reloader="distilled", versus=("ensemble",),
        calibrated=prepared.calibrated, facts=prepared.facts, live=prepared.live,
    )  # fmt: skip
    write_student(backbone, student, artifact.path, source.ensemble.classes)
    what = (
        f"One deterministic network that learnt the mean probability of an ensemble of {source.ensemble.n_members} members and, in "
        f"one output more ({EVIDENCE}), how much they differ. It is not the ensemble; its own numbers are below.\n\n"
        + prepared.lines
    )
    write_card(source, artifact, what, usage(backbone) + "\n\n" + evidence_usage(backbone))
    return [artifact]


def write_student(backbone: Backbone, student: TrainedStudent, folder: Path, classes: list[str]) -> None:
    """The checkpoint and its evidence file."""
    backbone.save(student.model(), folder, classes)
    evidence = {name: tensor.float().cpu().contiguous() for name, tensor in student.evidence().items()}
    # One key: safetensors writes several in random order, and the same network must give the same bytes.
    save_file(evidence, folder / EVIDENCE, {"format": EVIDENCE_FORMAT})


def evidence_usage(backbone: Backbone) -> str:
    """Lines of Python that follow those of `card.usage`: entropy and mutual information from the logits."""
    rows = ""
    if "SentenceTransformer" in backbone.loads_with:
        rows = "logits = torch.tensor(logits)\n"
    elif "AutoModelForCausalLM" in backbone.loads_with:
        letters = 'tokenizer.convert_tokens_to_ids(t) for t in ("A", "B")'
        rows = f"logits = logits[[{letters}]].unsqueeze(0)  # of the options there are\n"
    return (
        "# Uncertainty in nats: a Dirichlet with mean p and precision exp(a).\n"
        "import torch\n"
        "from safetensors.torch import load_file\n"
        f"{rows}"
        f'evidence = load_file("FOLDER/{EVIDENCE}")\n'
        "p = torch.softmax(logits.double(), -1)\n"
        "entropy = torch.special.entr(p).sum(-1)\n"
        'a = evidence["weight"].double() * (entropy + 1e-3).log() + evidence["bias"].double()\n'
        "alpha = p * a.exp().unsqueeze(-1)\n"
        "expected = torch.digamma(alpha.sum(-1) + 1) - (p * torch.digamma(alpha + 1)).sum(-1)\n"
        "mutual_information = entropy - expected  # the epistemic part\n"
        "print(entropy, mutual_information)"
    )


def require_evidence(folder: Path, text: bool) -> None:
    """A complete checkpoint with its evidence file.

    Raises:
        CheckFailed: naming what is missing.
    """
    require_files(folder, [EVIDENCE])
    require_complete(folder, text)
    if not any(p.name != EVIDENCE for p in folder.glob("*.safetensors")):
        raise CheckFailed(f"The export '{folder.name}' lacks weights (.safetensors).", REPORT)


FLOAT32 = "its uncertainty is an exponential of one output, which rounding would move too far."
TARGET = Target(lambda members, options: ["distilled"], export_distilled, require_evidence, float32_because=FLOAT32)
