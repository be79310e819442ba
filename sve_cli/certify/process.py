"""Ask a fresh process, which knows nothing of this tool, what exported folders answer.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import safe_open

from sve_cli.backbone import locate
from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.certify.worker import CANNOT_WRITE
from sve_cli.errors import CheckFailed, SveError
from sve_cli.export.artifact import Artifact
from sve_cli.samples import Samples, decode_image
from sve_cli.tasks.common import Task
from sve_cli.tasks.multiple_choice import prompt_text

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Answer:
    """What a reloaded folder said: its outputs by name (see `worker.py`), class names, weights it lacks (or has too many),
    versions of the libraries."""

    outputs: dict[str, np.ndarray]
    classes: list[str]
    missing: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """Raw inputs for the worker, and what the class names of the folder must read."""

    request: dict[str, Any]
    classes: list[str]
    notes: list[str] = field(default_factory=list)


Reload = Callable[[Sequence[Artifact], Questions], list[Answer]]


def questions(task: Task, samples: Samples, scratch: Path) -> Questions:
    """What the fresh process is asked; see `_raw`. With the checkpoint's place, for artifacts that lie on top of it."""
    asked = _raw(task, samples, scratch)
    location = locate(task.backbone.spec)
    base = {"base": task.backbone.spec.name, "base_place": str(location.path or location.name)}
    return replace(asked, request={**asked.request, **base})


def _raw(task: Task, samples: Samples, scratch: Path) -> Questions:
    """The raw inputs of these samples: texts, PNG files written to `scratch`, or prompts with the letters' token ids."""
    if samples.modality == "image":
        paths = []
        for i in range(len(samples)):
            decode_image(samples.inputs["image"][i]).save(path := scratch / f"{i}.png")
            paths.append(str(path))
        return Questions({"images": paths}, task.classes)
    if isinstance(task.backbone, CausalLM):
        return _prompts(task, task.backbone, samples)
    request: dict[str, Any] = {"texts": [str(t) for t in samples.inputs["text"]]}
    if "text_pair" in samples.inputs:
        request["pairs"] = [str(t) for t in samples.inputs["text_pair"]]
    return Questions(request, task.classes)


def _prompts(task: Task, backbone: CausalLM, samples: Samples) -> Questions:
    """Prompts as text; as token ids where the task had to shorten them."""
    tokenizer, encoded = backbone.transform, task.encode(samples)
    contexts = samples.inputs.get("context") or [""] * len(samples)
    prompts: list[str | list[int]] = []
    for i in range(len(samples)):
        choices = [str(c) for c in samples.inputs["choices"][i]]
        text = prompt_text(task.spec.instruction, str(contexts[i] or ""), str(samples.inputs["question"][i]), choices)
        ids = encoded.batch(np.array([i]))["input_ids"][0].tolist()
        prompts.append(text if tokenizer(text)["input_ids"] == ids else ids)
    shortened = sum(isinstance(p, list) for p in prompts)
    notes = [f"{shortened} of {len(prompts)} prompts were too long and were compared as shortened token ids."] if shortened else []
    asked = [
        {
            "question": str(samples.inputs["question"][i]),
            "context": str(contexts[i] or ""),
            "choices": list(samples.inputs["choices"][i]),
        }
        for i in range(len(samples))
    ]
    letters = [str(t) for t in tokenizer.convert_ids_to_tokens(backbone.letter_ids)]
    return Questions({"prompts": prompts, "letter_ids": backbone.letter_ids, "items": asked}, letters, notes)


def in_fresh_process(artifacts: Sequence[Artifact], asked: Questions) -> list[Answer]:
    """One new Python process for each kind of reloader opens its folders in turn, offline, on the CPU, in float32.

    Raises:
        CheckFailed: a folder does not open, or does not run.
    """
    answers: dict[int, Answer] = {}
    for reloader in dict.fromkeys(a.reloader for a in artifacts):
        which = [i for i, a in enumerate(artifacts) if a.reloader == reloader]
        found = _one_process(reloader, [artifacts[i].path for i in which], asked)
        answers |= dict(zip(which, found, strict=True))
    return [answers[i] for i in range(len(artifacts))]


def _one_process(reloader: str, folders: Sequence[Path], asked: Questions) -> list[Answer]:
    with TemporaryDirectory(prefix="sve-certify-") as scratch:
        request = {
            "reloader": reloader,
            "package": str(WORKER.parents[2]),
            "folders": [str(f.resolve()) for f in folders],
            "answers": scratch,
            **asked.request,
        }
        path = Path(scratch) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PYTHONPATH", None)
        order = [sys.executable, "-P", str(WORKER), str(path)]
        done = subprocess.run(order, env=environment, capture_output=True, text=True, check=False)
        return [_read(Path(scratch) / f"{i}.safetensors", folder, done) for i, folder in enumerate(folders)]


def _read(path: Path, folder: Path, done: subprocess.CompletedProcess[str]) -> Answer:
    if not path.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        if done.returncode < 0:
            raise SveError(f"The process that reloads '{folder.name}' was killed (signal {-done.returncode}).", "Free some memory.")
        if done.returncode == CANNOT_WRITE:
            hint = "Free some disk, or name another place for temporary files in $TMPDIR."
            raise SveError(f"The process that reloads '{folder.name}' cannot write its answer to '{path}' ({last[:300]}).", hint)
        raise CheckFailed(f"The export '{folder.name}' does not open in a fresh process: {last[:300]}")
    with safe_open(path, framework="numpy") as f:
        found = json.loads(f.metadata()["found"])
        outputs = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - it is no dictionary
    return Answer(outputs, found["classes"], found["missing"], found["versions"])
