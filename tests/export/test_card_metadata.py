"""The licence that a checkpoint's own card states."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sve_cli.export.card import needs
from sve_cli.export.card_metadata import license_of
from sve_cli.recipe.spec import ModelSpec


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\ntags: a\n---\n", None),
        ("---\n: [broken\n---\n", None),
        ("# A model without a metadata block", None),
        (None, None),
    ],
)
def test_it_is_read_without_a_word_to_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, card: str | None, expected: str | None
) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet10t"}')
    (tmp_path / "model.safetensors").touch()
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    backbone: Any = SimpleNamespace(spec=ModelSpec(name=str(tmp_path)))
    logger = logging.getLogger("huggingface_hub")  # it does not pass its records on
    logger.addHandler(caplog.handler)
    try:
        assert license_of(backbone) == expected
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import json, timm, torch\nfrom PIL import Image", "# pip install pillow timm torch\n"),
        ("from sentence_transformers import SentenceTransformer", "# pip install sentence-transformers\n"),
        (
            'from transformers import AutoTokenizer\nt(["a"], return_tensors="pt")\nimport onnxruntime',
            "# pip install onnxruntime torch transformers\n",
        ),
        ("import sve_cli, torch", ""),
        ("import json", ""),
    ],
)
def test_a_card_says_what_its_code_needs(code: str, expected: str) -> None:
    assert needs(code) == expected
