"""Whether an exported folder is still what was certified: every file against the digests in its certificate. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sve_cli.errors import CheckFailed, SveError
from sve_cli.rundir import file_digest

FORMAT = "sve-certificate/2"
CARD, CERTIFICATE = "README.md", "certificate.json"
NEEDED = (".json", ".safetensors")  # what `sve_cli.load` fetches from the hub, beside the card
OF_THE_HUB = (".gitattributes", ".cache/")  # what its client puts beside what it fetches
AGAIN = "Export the run again, or fetch the folder again."


def document_digest(document: Mapping[str, Any]) -> str:
    """sha256 of a JSON document, whatever its layout."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of an artifact, but for its card and its certificate, which are written later."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (CARD, CERTIFICATE))
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def verify(folder: Path, some_missing: bool = False) -> dict[str, Any]:
    """The certificate of a folder whose files are those that were certified.

    Args:
        some_missing: what no loader reads may be missing (a download of what is needed).

    Raises:
        SveError: the folder has no certificate.
        CheckFailed: a file is missing, was changed, or was added, or the certificate itself was changed.
    """
    path = folder / CERTIFICATE
    try:
        certificate = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SveError(f"'{folder}' has no readable certificate ({reason}).", "Name a folder that sve export wrote.") from error
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise SveError(f"'{path}' is no certificate of the format {FORMAT}.", "Export the run again.")
    if certificate.pop("digest", None) != document_digest(certificate):
        raise CheckFailed(f"'{CERTIFICATE}' of '{folder}' was changed after the export.", AGAIN)
    stated = certificate["files"]
    found = {name: digest for name, digest in file_digests(folder).items() if not name.startswith(OF_THE_HUB)}
    expected = {name for name in stated if not some_missing or name.endswith(NEEDED)}
    for name in sorted({*expected, *found}):
        if stated.get(name) != found.get(name):
            what = (
                "is missing" if name not in found else "was not certified" if name not in stated else "was changed after the export"
            )
            raise CheckFailed(f"'{name}' of '{folder}' {what}.", AGAIN)
    return certificate
