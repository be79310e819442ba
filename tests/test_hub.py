"""Without a network the hub's cache answers at once."""

from __future__ import annotations

import socket
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from sve_cli import backbone, hub
from sve_cli.data.sources import open_source
from sve_cli.errors import CheckpointError, DataError
from sve_cli.recipe.spec import DataSpec, ModelSpec

NOWHERE = "https://hub.invalid"  # a name that nobody can have (RFC 2606)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose name nobody resolves, no proxy, and nothing that forbids the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(hub, "getproxies", dict)


def switches() -> tuple[bool, bool]:
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_only_inside_is_it_offline_and_after_an_error_no_more() -> None:
    with pytest.raises(KeyError), hub.cache_when_unreachable():
        assert switches() == (True, True)
        raise KeyError
    assert switches() == (False, False)


def test_a_name_that_resolves_or_a_proxy_leaves_the_network_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    assert not hub.reachable(NOWHERE)
    with monkeypatch.context() as online:
        online.setattr(socket, "getaddrinfo", lambda *where: asked.append(where))
        with hub.cache_when_unreachable():
            assert switches() == (False, False)
    assert asked == [("hub.invalid", "https")]
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.reachable(NOWHERE)


def test_what_the_user_forbade_stays_forbidden_and_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "reachable", lambda address: pytest.fail(f"{address} was looked up"))
    with hub.cache_when_unreachable():
        assert switches() == (True, False)
    assert switches() == (True, False)


def test_checkpoints_and_data_sets_are_opened_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a retry waits"))
    with pytest.raises(CheckpointError, match="transformers cannot open 'some/model'"):
        backbone.load_backbone(ModelSpec(name="some/model"), "text_classification")
    with pytest.raises(CheckpointError, match="timm cannot open 'hf-hub:some/model'"):
        backbone.load_backbone(ModelSpec(name="hf-hub:some/model"), "image_classification")
    with pytest.raises(DataError, match=r"the hub gave: .*some/set"):
        open_source("some/set", DataSpec(name="some/set"))
