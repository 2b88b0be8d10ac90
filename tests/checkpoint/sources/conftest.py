from __future__ import annotations

import pytest

from shardload.checkpoint.sources import ranges
from tests.hub_server import HubServer, forget_connections

from .org_model import FILES


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback for the client of this process, with an empty cache at tmp_path / "cache"."""
    monkeypatch.setattr(ranges, "RETRY_DELAYS", (0, 0, 0))
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        yield server
        forget_connections()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def commit(hub):
    return hub.commit("org/model", FILES)
