"""`sve_cli.load` on the folder of a distilled network: class probabilities and their uncertainty in a single pass.

Shapes: N inputs, B batch, C classes, F features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sve_cli.backbone import load_backbone
from sve_cli.certified import verify
from sve_cli.errors import CheckFailed, CheckpointError
from sve_cli.export.distilled import EVIDENCE, EVIDENCE_FORMAT
from sve_cli.methods.distilled import log_entropy
from sve_cli.metrics.dirichlet import concentrations, mean_entropy, mutual_information
from sve_cli.prediction import batches_by_length
from sve_cli.recipe.spec import DataSpec, MethodSpec, ModelSpec, Recipe, TaskSpec
from sve_cli.registry import TASKS
from sve_cli.samples import DataSet
from sve_cli.tasks.common import Task, tensor_to
from sve_cli.workflows.serving import Answers
from sve_cli.workflows.serving_inputs import to_samples
from sve_cli.workflows.session import Log, Session

POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
BATCH = 128
AGAIN = "Export it again: sve export RUN --to distilled"


class LoadedDistilled:
    """A distilled network: `predict` gives what an ensemble's does, from one network and without a run's decisions."""

    n_members = 1

    def __init__(self, session: Session, evidence: dict[str, Tensor]) -> None:
        self._session, self._evidence = session, evidence
        self.classes = list(session.task.classes)
        self.rules = ["A distilled network carries no decisions, so every input is answered."]

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or its image transform."""
        return self._session.backbone.transform

    def predict(self, inputs: Any, batch_size: int | None = None) -> Answers:
        """Answer texts, pairs of texts or images, as `LoadedEnsemble.predict` takes them.

        Raises:
            DataError: inputs of another kind, or none.
        """
        session = self._session
        pairs = isinstance(inputs, (list, tuple)) and bool(inputs) and isinstance(inputs[0], (tuple, list))
        samples = to_samples(inputs, session.task.modality, pairs)
        encoded = session.task.encode(samples)
        logits_NC = torch.zeros(len(encoded), len(self.classes))
        head = session.backbone.head
        assert head is not None
        with torch.inference_mode():
            for rows in batches_by_length(encoded, batch_size or BATCH):
                inputs_B = tensor_to(encoded.batch(rows), session.device)
                features_BF = session.backbone.features(session.backbone.network, inputs_B).float().cpu()
                logits_NC[rows] = torch.nn.functional.linear(features_BF, head.weight_CF.float(), head.bias_C)
        probs_NC = torch.softmax(logits_NC.double(), -1)
        log_precision_N = self._evidence["weight"].double() * log_entropy(probs_NC) + self._evidence["bias"].double()
        alpha_NC = concentrations(probs_NC, log_precision_N)
        entropy_N, mutual_N = mean_entropy(alpha_NC).numpy(), mutual_information(alpha_NC).numpy()
        return Answers(
            labels=[self.classes[int(c)] for c in np.asarray(probs_NC.argmax(-1))],
            probabilities=probs_NC.numpy(),
            entropy=entropy_N,
            aleatoric=entropy_N - mutual_N,
            epistemic=mutual_N,
            decisions=["answer"] * len(samples),
            ood_scores=None,
            sets=None,
            classes=self.classes,
        )


def _evidence(folder: Path) -> dict[str, Tensor]:
    """weight (1,) and bias (1,) of the log-precision."""
    with safe_open(folder / EVIDENCE, framework="pt") as file:
        stated = str((file.metadata() or {}).get("format", "")).partition(",")[0]
        if stated != EVIDENCE_FORMAT.partition(",")[0]:
            raise CheckpointError(
                f"'{folder / EVIDENCE}' is of another version of sve, whose uncertainty is computed otherwise.", AGAIN
            )
        return {name: file.get_tensor(name) for name in ("weight", "bias")}


def open_distilled(folder: Path, log: Log, device: torch.device) -> LoadedDistilled:
    """A folder that `sve export --to distilled` wrote.

    Raises:
        CheckpointError: damaged or incomplete, or a network that answers questions with options.
    """
    try:
        evidence = _evidence(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        verify(folder, some_missing=True)
    except CheckFailed as error:
        raise CheckpointError(error.message, error.hint) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"'{folder}' cannot be opened ({error}).", AGAIN) from error
    images = "architecture" in config
    pooling = "native"
    if (folder / "1_Pooling" / "config.json").is_file():
        flags = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        pooling = next(name for flag, name in POOLING.items() if flags.get(flag))
    model = ModelSpec(name=str(folder), pooling="auto" if images else pooling)  # type: ignore[arg-type]
    spec = TaskSpec(name="image_classification" if images else "text_classification", head="checkpoint")
    backbone = load_backbone(model, spec.name)
    if backbone.head is None or backbone.head.classes is None:
        raise CheckpointError(
            f"'{folder}' has no classifier of its own with class names.",
            "A network for multiple choice opens with its own library.",
        )
    task: Task = TASKS.resolve(spec.name)(spec, list(backbone.head.classes), backbone)
    recipe = Recipe(model=model, data=DataSpec(name="inputs"), task=spec, method=MethodSpec(name="single", members=1))
    session = Session(recipe, backbone, DataSet(None, None, None, []), task, log)
    session.device = device
    backbone.network.to(device)
    return LoadedDistilled(session, evidence)
