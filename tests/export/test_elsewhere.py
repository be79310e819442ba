"""Exports where this package is not: a Python without it, a language model's own settings, a real MiniLM through every graph."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sve_cli.certify import in_fresh_process

Make = Callable[..., Any]

OPEN = """
import json, sys
try:
    import sve_cli
    raise SystemExit("sve_cli is installed here")
except ModuleNotFoundError:
    pass
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
with torch.inference_mode():
    print(json.dumps(model(**inputs).logits.tolist()))
"""


def without_this_package(folder: Path) -> Path:
    """A Python that has every package of this one by links, and not this one -> its interpreter."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for place in map(Path, site.getsitepackages()):
        for entry in place.iterdir() if place.is_dir() else ():
            ours = entry.name.lower().startswith(("sve_cli", "sve-cli", "__editable__"))
            if not ours and entry.suffix != ".pth" and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_member_opens_where_this_package_is_not_installed(make: Make, tmp_path: Path) -> None:
    case = make("bert")
    ((artifact, _),) = case.export(tmp_path / "out", members=[1])
    python = without_this_package(tmp_path / "venv")
    texts = list(case.samples.inputs["text"])
    order = [str(python), "-I", "-c", OPEN, str(artifact.path), json.dumps(texts)]
    done = subprocess.run(order, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = case.ensemble.backbone.logits(case.ensemble.member_model(1), case.task.encode(case.samples).batch(np.arange(20)))
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected.detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_chat_template_and_generation_config_are_carried(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make("llama").source
    monkeypatch.setenv("SVE_TEST_MODELS", str(tmp_path / "models"))
    folder = Path(shutil.copytree(source, tmp_path / "models" / source.name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.generation_config.update(temperature=0.123, do_sample=True, max_new_tokens=17)
    network.save_pretrained(folder)
    case = make("llama")
    assert case.source == folder
    for artifact, _ in case.export(tmp_path / "out", ("merged", "averaged"), [1]):
        opened = AutoTokenizer.from_pretrained(artifact.path)
        said = opened.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
        assert said == "<user>hello"
        settings = AutoModelForCausalLM.from_pretrained(artifact.path).generation_config
        assert (settings.temperature, settings.do_sample, settings.max_new_tokens) == (0.123, True, 17)


# A real encoder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch_export"])
def test_a_real_encoder_as_a_graph(make: Make, tmp_path: Path, target: str) -> None:
    if target == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sve-cli[onnx]')")
    case = make("minilm", pooling="mean")
    ((_, certificate),) = case.export(tmp_path / "out", (target,), [1], reload=in_fresh_process, graph_of="members")
    assert certificate.gaps.worst <= 1e-4 < certificate.gap_to_base


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_a_real_encoder_as_lora_and_merged(make: Make, tmp_path: Path, pooling: str) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sve-cli[lora]')")
    case = make("minilm", pooling=pooling)
    results = case.export(tmp_path / "out", ("lora", "merged"), [1], reload=in_fresh_process, rank="16")
    assert [a.kind for a, _ in results] == ["lora", "merged"]
    assert all(c.gaps.worst <= 1e-4 < c.gap_to_base for _, c in results)
