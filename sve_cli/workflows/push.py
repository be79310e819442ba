"""Certified folders to the Hugging Face hub, one repository each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from sve_cli.certified import CARD, CERTIFICATE, verify
from sve_cli.errors import SveError
from sve_cli.workflows.session import Log

ATTRIBUTES = ".gitattributes"  # what the hub puts into an empty repository
PLACE = re.compile(r'"([^"\n]*)FOLDER([^"\n]*)"')
# What the client raises; a failed transfer is a RuntimeError, and objects that the hub refuses to store are a ValueError.
FAILURES = (HTTPError, LocalTokenNotFoundError, HFValidationError, OSError, RuntimeError, ValueError)
REFUSALS = {401: "the hub does not accept this login", 403: "this login has no right to do that there"}
LOGIN = "Run `hf auth login` with a token that may write, or set HF_TOKEN."
LATER = "Or export without --push; a finished folder is pushed with: sve export --verify FOLDER --push USER/NAME"


def hub() -> Any:
    """The hub's client: the one place that reaches the network."""
    return HfApi()


def require_pushable(repository: str) -> None:
    """Refuse, before any work, a name that is none, a machine that is not logged in, and a hub that cannot be reached.

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
    try:
        hub().whoami()
    except OfflineModeIsEnabled as error:
        raise SveError("--push needs the network, and HF_HUB_OFFLINE forbids it.", f"Unset HF_HUB_OFFLINE. {LATER}") from error
    except (HTTPError, OSError) as error:
        status = _status(error)
        if status == 401:
            raise SveError("The Hugging Face hub does not accept this machine's login.", LOGIN) from error
        if status is None:
            raise SveError(f"The Hugging Face hub cannot be reached ({reason(error)}).", LATER) from error
        # Any other answer (too many requests, say) is none about the login: the upload will tell.


def push(folders: Sequence[Path], repository: str, log: Log, public: bool = False) -> list[str]:
    """Upload certified folders -> their addresses. One goes to `repository` itself, several to `repository`-<folder>.

    Each repository is private unless `public`; one that exists stays as it is, and afterwards holds what the folder holds.

    Raises:
        SveError: a folder is not certified, the hub cannot be reached or refuses, or the repository holds something else.
        CheckFailed: a folder was changed after its certificate.
    """
    names = [repository if len(folders) == 1 else f"{repository}-{folder.name}" for folder in folders]
    addresses: list[str] = []
    for folder, name in zip(folders, names, strict=True):
        files = [*verify(folder)["files"], CARD, CERTIFICATE]
        try:
            addresses.append(_upload(hub(), folder, files, name, public))
        except FAILURES as error:
            left = list(zip(folders, names, strict=True))[len(addresses) :]
            commands = " && ".join(f"sve export --verify {f} --push {n}{' --public' * public}" for f, n in left)
            raise SveError(
                f"'{folder}' is complete, but could not be pushed to '{name}': {reason(error)}.", f"Push it later: {commands}"
            ) from error
        log.say(f"Pushed '{folder}' to {addresses[-1]} ({'public' if public else 'private'}, unless it was there already).")
    return addresses


def _status(error: BaseException) -> int | None:
    """The hub's answer; None where there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def reason(error: BaseException) -> str:
    """Why the hub's client failed, without a full stop: the hub's own words where it said some."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading", and then why
        return reason(error.__cause__)
    status, said = _status(error), getattr(error, "server_message", None)
    first = next((line.strip() for line in str(said or error).splitlines() if line.strip()), type(error).__name__)[:300].rstrip(".")
    if status is None:
        return first
    return f"{REFUSALS.get(status, f'the hub answered {status}')} ({first})"


def _upload(api: Any, folder: Path, files: Sequence[str], name: str, public: bool) -> str:
    address = str(api.create_repo(name, private=not public, exist_ok=True))
    before = set(api.list_repo_files(name)) - {ATTRIBUTES}
    if before and CERTIFICATE not in before:
        raise SveError(f"The repository '{name}' holds something that sve did not write.", "Choose another name with --push.")
    card = card_for(name, (folder / CARD).read_text(encoding="utf-8"))
    operations: list[Any] = [CommitOperationDelete(path) for path in sorted(before - set(files))]
    for path in files:
        operations.append(CommitOperationAdd(path, card.encode() if path == CARD else str(folder / path)))
    api.create_commit(name, operations, commit_message=f"{folder.name}, exported and certified by sve")
    return address


def card_for(name: str, card: str) -> str:
    """A card whose code opens the repository instead of a local folder."""
    before, heading, after = card.partition("## How to load it")
    start, fence, rest = after.partition("```python\n")
    code, end, rest = rest.partition("```")
    if "FOLDER" not in code:
        return card
    fetched = f'from huggingface_hub import snapshot_download\nfolder = snapshot_download("{name}")\n'
    return before + heading + start + fence + fetched + PLACE.sub(_joined, code) + end + rest


def _joined(match: re.Match[str]) -> str:
    before, after = match[1], match[2]
    return " + ".join([*([f'"{before}"'] if before else []), "folder", *([f'"{after}"'] if after else [])])
