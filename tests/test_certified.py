"""An exported folder against its certificate, and the certificate against itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sve_cli.certified import CERTIFICATE, FORMAT, document_digest, file_digests, verify
from sve_cli.errors import CheckFailed, SveError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "2_Dense").mkdir()
    for name in ("model.safetensors", "2_Dense/model.safetensors", "tokenizer.model", "README.md"):
        (tmp_path / name).write_bytes(bytes(range(64)))
    document = {"format": FORMAT, "created": "now", "gaps": {"max_logit_gap": 1e-06}, "files": file_digests(tmp_path)}
    (tmp_path / CERTIFICATE).write_text(json.dumps({**document, "digest": document_digest(document)}, indent=1))
    return tmp_path


def test_an_untouched_folder_is_what_was_certified(folder: Path) -> None:
    assert verify(folder)["files"].keys() == {"model.safetensors", "2_Dense/model.safetensors", "tokenizer.model"}
    (folder / "README.md").write_text("another card")  # an upload rewrites its code
    (folder / ".gitattributes").write_text("of the hub")
    (folder / "tokenizer.model").unlink()
    assert verify(folder, some_missing=True)["created"] == "now"


def flip(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def reword(folder: Path) -> None:
    (folder / CERTIFICATE).write_text((folder / CERTIFICATE).read_text().replace("1e-06", "1e-09"))


def rename_digest(folder: Path) -> None:
    (folder / CERTIFICATE).write_text((folder / CERTIFICATE).read_text().replace('"digest"', '"diges"'))


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (flip("model.safetensors"), "'model.safetensors' of .* was changed after the export"),
        (flip("2_Dense/model.safetensors"), "'2_Dense/model.safetensors' of .* was changed"),
        (cut, "'model.safetensors' of .* was changed"),
        (lambda f: (f / "2_Dense" / "model.safetensors").unlink(), "'2_Dense/model.safetensors' of .* is missing"),
        (lambda f: (f / "more.json").write_text("{}"), "'more.json' of .* was not certified"),
        (reword, "'certificate.json' of .* was changed after the export"),
        (rename_digest, "'certificate.json' of .* was changed after the export"),
    ],
)
def test_what_was_changed_is_refused(folder: Path, change: Callable[[Path], Any], saying: str) -> None:
    change(folder)
    with pytest.raises(CheckFailed, match=saying) as caught:
        verify(folder)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": "sve-certificate/1"}'])
def test_without_a_certificate_there_is_nothing_to_compare_with(folder: Path, content: str | None) -> None:
    (folder / CERTIFICATE).unlink()
    if content is not None:
        (folder / CERTIFICATE).write_text(content)
    with pytest.raises(SveError, match="no readable certificate|is no certificate of the format") as caught:
        verify(folder)
    assert caught.value.exit_code == 2


def test_it_loads_no_network_library() -> None:
    code = "import sys, sve_cli.commands.export, sve_cli.certified; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
