"""Certified folders to the Hugging Face hub, one repository each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from sve_cli.certify.certificate import CERTIFICATE
from sve_cli.certify.verify import verify
from sve_cli.errors import SveError
from sve_cli.export.artifact import CARD
from sve_cli.workflows.session import Log

ATTRIBUTES = ".gitattributes"  # what the hub puts into an empty repository
PLACE = re.compile(r'"([^"\n]*)FOLDER([^"\n]*)"')


def hub() -> Any:
    """The hub's client: the one place that reaches the network."""
    return HfApi()


def require_pushable(repository: str) -> None:
    """Refuse, before any work, a name that is none, and a machine that is not logged in.

    Raises:
        SveError: saying what to do.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise SveError(f"--push '{repository}' is no repository of the hub ({error}).", "Write USER/NAME.") from error
    if repository.count("/") != 1:
        raise SveError(f"--push '{repository}' names no user or organisation.", "Write USER/NAME.")
    if get_token() is None:
        raise SveError("This machine is not logged in to the Hugging Face hub.", "Run `hf auth login`, or set HF_TOKEN.")


def push(folders: Sequence[Path], repository: str, log: Log, public: bool = False) -> list[str]:
    """Upload certified folders -> their addresses. One goes to `repository` itself, several to `repository`-<folder>.

    Each repository is private unless `public`; one that exists stays as it is, and afterwards holds what the folder holds.

    Raises:
        SveError: a folder is not certified, the hub cannot be reached or refuses, or the repository holds something else.
        CheckFailed: a folder was changed after its certificate.
    """
    addresses = []
    for folder in folders:
        name = repository if len(folders) == 1 else f"{repository}-{folder.name}"
        verify(folder)
        try:
            addresses.append(_upload(hub(), folder, name, public))
        except (HTTPError, LocalTokenNotFoundError, HFValidationError, OSError) as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
            raise SveError(
                f"'{folder}' is complete, but could not be pushed to '{name}' ({first}).",
                f"Push it later: sve export --verify {folder} --push {name}",
            ) from error
        log.say(f"Pushed '{folder}' to {addresses[-1]} ({'public' if public else 'private'}, unless it was there already).")
    return addresses


def _upload(api: Any, folder: Path, name: str, public: bool) -> str:
    address = str(api.create_repo(name, private=not public, exist_ok=True))
    before = set(api.list_repo_files(name)) - {ATTRIBUTES}
    if before and CERTIFICATE not in before:
        raise SveError(f"The repository '{name}' holds something that sve did not write.", "Choose another name with --push.")
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    card = card_for(name, (folder / CARD).read_text(encoding="utf-8"))
    operations: list[Any] = [CommitOperationDelete(path) for path in sorted(before - files.keys())]
    for path, file in files.items():
        operations.append(CommitOperationAdd(path, card.encode() if path == CARD else str(file)))
    api.create_commit(name, operations, commit_message=f"{folder.name}, exported and certified by sve")
    return address


def card_for(name: str, card: str) -> str:
    """A card whose code opens the repository instead of a local folder."""
    start, fence, rest = card.partition("```python\n")
    code, end, rest = rest.partition("```")
    if "FOLDER" not in code:
        return card
    fetched = f'from huggingface_hub import snapshot_download\nfolder = snapshot_download("{name}")\n'
    return start + fence + fetched + PLACE.sub(_joined, code) + end + rest


def _joined(match: re.Match[str]) -> str:
    before, after = match[1], match[2]
    return " + ".join([*([f'"{before}"'] if before else []), "folder", *([f'"{after}"'] if after else [])])
