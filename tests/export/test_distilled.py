"""The distilled network's folder: an ordinary checkpoint with its evidence beside it, and whatever is not it is refused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sve_cli
from sve_cli.certify import Certificate
from sve_cli.certify.live import Live
from sve_cli.errors import CheckFailed, NotExportable, SveError
from sve_cli.export import Artifact
from sve_cli.export import distilled as target
from sve_cli.export.card import usage
from sve_cli.factors import FactorStore
from sve_cli.methods.distilled import Student, build_student
from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.nll import nll
from sve_cli.workflows.distil import live_outputs

Make = Callable[..., Any]


@dataclass
class Prepared:
    """What the workflow would hand over."""

    student: Student
    live: Any
    facts: dict[str, Any] = field(default_factory=lambda: {"distillation": {"epochs": 1}})
    lines: str = "Trained for 1 epoch."
    calibrated: tuple[float, str] = (1.0, "probs")


def student_of(case: Any, cache: Path, seed: int = 5) -> Student:
    """A student as far from its start as training would bring it."""
    student = build_student(case.ensemble, case.ensemble.backbone, case.recipe.method, FactorStore(cache), 0)
    student.calibrate(1.5 if student.ensemble.heads.trainable else 1.0, (-1.0, 1.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.ensemble.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return student


def export(case: Any, tmp_path: Path, student: Student | None = None, **prepared: Any) -> tuple[Artifact, Certificate]:
    made = student or student_of(case, tmp_path / "factors")
    live = live_outputs(made, case.task.modality != "multiple_choice")
    source = replace(case.source_of(), prepared={"distilled": Prepared(made, live, **prepared)})
    case.source_of = lambda members: source
    return case.export(tmp_path / "out", ("distilled",))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["bert", "bert_mean", "vit", "llama"])
def test_it_is_certified_with_its_evidence(make: Make, tmp_path: Path, kind: str) -> None:
    artifact, certificate = export(make(kind), tmp_path)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["distilled"]
    names = {"log_precision"} if kind == "llama" else {"log_precision", "entropy", "mutual_information"}
    assert certificate.gaps.outputs.keys() == names and certificate.gaps.worst <= 1e-4
    assert certificate.versus_ensemble is not None and certificate.facts["distillation"] == {"epochs": 1}
    assert "evidence.safetensors" in certificate.files
    card = (artifact.path / "README.md").read_text()
    assert "Trained for 1 epoch." in card and "mutual_information" in card and "## Certificate" in card


@pytest.mark.parametrize(("kind", "how"), [("bert", "logits"), ("llama", "probs")])
def test_it_is_shown_beside_the_calibrated_ensemble(make: Make, tmp_path: Path, kind: str, how: str) -> None:
    case = make(kind)
    artifact, certificate = export(case, tmp_path, calibrated=(0.5, how))
    live = Live(case.ensemble, case.task, case.samples)
    members = live.predictions(np.stack([live.member(m) / 0.5 for m in range(3)]))
    assert certificate.versus_ensemble is not None and certificate.versus_ensemble["temperature"] == 0.5
    assert certificate.versus_ensemble["ensemble"]["nll"] == pytest.approx(nll.compute(aggregate(members, how)), rel=1e-5)
    assert "Beside the ensemble at its temperature 0.5, on the same" in (artifact.path / "README.md").read_text()


def test_the_cards_code_gives_the_live_uncertainty(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    student = student_of(case, tmp_path / "factors")
    artifact, _ = export(case, tmp_path, student)
    backbone = case.ensemble.backbone
    text = case.samples.inputs["text"][0]
    code = (usage(backbone) + "\n" + target.evidence_usage(backbone)).replace("FOLDER", str(artifact.path)).replace("a text", text)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = live_outputs(student)(case.task.encode(case.samples).batch(np.arange(1)))
    torch.testing.assert_close(names["entropy"].float(), expected["entropy"].float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(names["mutual_information"].float(), expected["mutual_information"].float(), atol=1e-4, rtol=0)
    assert expected["mutual_information"] > 1e-3


def test_the_cards_code_for_images(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("vit")
    student = student_of(case, tmp_path / "factors")
    artifact, _ = export(case, tmp_path, student)
    backbone = case.ensemble.backbone
    Image.open(io.BytesIO(case.samples.inputs["image"][0])).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec((usage(backbone) + "\n" + target.evidence_usage(backbone)).replace("FOLDER", str(artifact.path)), names)
    expected = live_outputs(student)(case.task.encode(case.samples).batch(np.arange(1)))
    torch.testing.assert_close(names["mutual_information"].float(), expected["mutual_information"].float(), atol=1e-4, rtol=0)


# Exporters that write something else than what was evaluated.


def untrained_base(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    backbone = case.ensemble.backbone
    head = student.ensemble.heads.head(0, student.classes)
    patch.setattr(Student, "model", lambda self: backbone.with_head(backbone.fresh(), head))


def averaged_instead(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Student, "model", lambda self: case.ensemble.averaged_model())


def another_member(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Student, "model", lambda self: case.ensemble.member_model(1))


def dropped_evidence(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    original = target.write_student

    def write(*arguments: Any) -> None:
        original(*arguments)
        (arguments[2] / target.EVIDENCE).unlink()

    patch.setattr(target, "write_student", write)


def dropped_head(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    original = target.write_student

    def write(*arguments: Any) -> None:
        original(*arguments)
        file = arguments[2] / "model.safetensors"
        save_file({n: t for n, t in load_file(file).items() if not n.startswith("classifier")}, file, {"format": "pt"})

    patch.setattr(target, "write_student", write)


def anothers_evidence(case: Any, student: Student, patch: pytest.MonkeyPatch) -> None:
    other = {name: tensor + 0.05 for name, tensor in student.evidence().items()}
    patch.setattr(Student, "evidence", lambda self: other)


@pytest.mark.parametrize(
    ("sabotage", "saying"),
    [
        (untrained_base, "does not compute what was evaluated"),
        (averaged_instead, "does not compute what was evaluated"),
        (another_member, "It is member 1."),
        (dropped_evidence, "lacks evidence.safetensors"),
        (dropped_head, "lacks, or does not use, the weight 'classifier"),
        (anothers_evidence, "log precision differ"),
    ],
)
def test_anything_else_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[..., None], saying: str
) -> None:
    case = make("bert")
    student = student_of(case, tmp_path / "factors")
    sabotage(case, student, monkeypatch)
    with pytest.raises(CheckFailed, match=saying):
        export(case, tmp_path, student)
    assert not (tmp_path / "out").exists()


def other_version(folder: Path) -> None:
    save_file(load_file(folder / target.EVIDENCE), folder / target.EVIDENCE, {"format": "sve-evidence/1, linear in the features"})


def flipped_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def truncated_evidence(folder: Path) -> None:
    (folder / target.EVIDENCE).write_bytes((folder / target.EVIDENCE).read_bytes()[:-4])


def without_certificate(folder: Path) -> None:
    (folder / "certificate.json").unlink()


def test_what_is_not_what_was_certified_does_not_load(make: Make, tmp_path: Path) -> None:
    """`sve_cli.load` of a distilled folder; one that was fetched has the hub's own files, and not every file."""
    artifact, _ = export(make("bert"), tmp_path)
    fetched = Path(shutil.copytree(artifact.path, tmp_path / "fetched"))
    (fetched / ".gitattributes").write_text("*.safetensors filter=lfs")
    for path in fetched.iterdir():  # only what is fetched from the hub
        if path.suffix not in (".json", ".safetensors", ".md") and path.is_file():
            path.unlink()
    assert sve_cli.load(fetched, device="cpu").predict(["a good film"]).labels
    for i, (change, saying) in enumerate(
        (
            (other_version, "of another version of sve.*Export it again: sve export RUN --to distilled"),
            (flipped_byte, "'model.safetensors' of .* was changed after the export"),
            (truncated_evidence, "cannot be opened"),
            (without_certificate, "has no readable certificate"),
            (lambda folder: (folder / "model.safetensors").unlink(), "'model.safetensors' of .* is missing"),
        )
    ):
        folder = Path(shutil.copytree(artifact.path, tmp_path / str(i)))
        change(folder)
        with pytest.raises(SveError, match=saying):
            sve_cli.load(folder, device="cpu")


def test_without_a_trained_student_there_is_nothing_to_write(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    with pytest.raises(NotExportable, match="needs a network trained"):
        target.export_distilled(case.source_of(), tmp_path)
