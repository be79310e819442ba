"""The hub when there is no network: its cache at once, instead of after its libraries' retries (20 seconds for each file)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies


def reachable(address: str) -> bool:
    """Whether the host of an address has one of its own. Behind a proxy nothing can be said: True."""
    if getproxies():
        return True
    url = urlsplit(address)
    try:
        socket.getaddrinfo(url.hostname, url.port or url.scheme)
    except OSError:  # of which a name that is not resolved is one
        return False
    return True


@contextmanager
def cache_when_unreachable() -> Iterator[None]:
    """What is opened inside comes from the cache alone if the hub's name cannot be resolved, as with HF_HUB_OFFLINE=1.

    Only inside: a process that goes on for days finds the hub again when the network is back.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    switches: list[Any] = [constants]
    if "datasets.config" in sys.modules:  # has its own copy
        switches.append(sys.modules["datasets.config"])
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
