"""Whether an exported folder is still what was certified: every file against the digests in its certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sve_cli.certify.certificate import CERTIFICATE, FORMAT
from sve_cli.certify.judge import file_digests
from sve_cli.errors import CheckFailed, SveError

NEEDED = (".json", ".safetensors")  # what `sve_cli.load` fetches from the hub, beside the card
OF_THE_HUB = (".gitattributes", ".cache/")  # what its client puts beside what it fetches


def verify(folder: Path, some_missing: bool = False) -> dict[str, Any]:
    """The certificate of a folder whose files are those that were certified.

    Args:
        some_missing: what no loader reads may be missing (a download of what is needed).

    Raises:
        SveError: the folder has no certificate.
        CheckFailed: a file is missing, was changed, or was added.
    """
    path = folder / CERTIFICATE
    try:
        certificate = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SveError(f"'{folder}' has no readable certificate ({error}).", "Name a folder that sve export wrote.") from error
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise SveError(f"'{path}' is no certificate of the format {FORMAT}.", "Export the run again.")
    stated = certificate["files"]
    found = {name: digest for name, digest in file_digests(folder).items() if not name.startswith(OF_THE_HUB)}
    expected = {name for name in stated if not some_missing or name.endswith(NEEDED)}
    for name in sorted({*expected, *found}):
        if stated.get(name) != found.get(name):
            what = (
                "is missing" if name not in found else "was not certified" if name not in stated else "was changed after the export"
            )
            raise CheckFailed(f"'{name}' of '{folder}' {what}.", "Export the run again, or fetch the folder again.")
    return certificate
