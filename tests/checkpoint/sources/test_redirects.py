"""What a redirect would carry to another host is found before obstore is asked."""

from __future__ import annotations

import pytest

from shardload.checkpoint.sources.redirects import require_no_redirect
from shardload.errors import AccessError
from tests.store_server import StoreServer

obstore = pytest.importorskip("obstore")


@pytest.fixture
def server():
    with StoreServer({"a/f.bin": b"x" * 100}) as server:
        yield server


def web(server, **headers):
    return obstore.store.HTTPStore(
        server.url, client_options={"allow_http": True, "default_headers": headers}
    )


def test_a_header_of_the_callers_own_stops_at_another_host(server):
    server.fault("a/f.bin", redirect=True)
    with pytest.raises(AccessError, match="would be sent x-api-key") as caught:
        require_no_redirect(web(server, **{"x-api-key": "SECRET", "user-agent": "me"}), server.url, "a/f.bin")
    assert "localhost" in caught.value.where
    assert "SECRET" not in str(caught.value)
    assert [request.host for request in server.log] == ["127.0.0.1"]


def test_nothing_is_asked_where_a_redirect_would_carry_nothing(server):
    server.fault("a/f.bin", redirect=True)
    require_no_redirect(web(server, authorization="Bearer SECRET"), server.url, "a/f.bin")
    plain = obstore.store.S3Store(
        "bucket",
        endpoint=server.url.removesuffix("/bucket"),
        access_key_id="a",
        secret_access_key="b",
        client_options={"allow_http": True},
    )
    require_no_redirect(plain, "s3://bucket", "a/f.bin")
    assert server.log == []


def test_a_server_that_redirects_nowhere_else_is_all_right(server):
    require_no_redirect(web(server, **{"x-api-key": "k"}), server.url, "a/f.bin")
    server.fault("a/f.bin", status=503)
    require_no_redirect(web(server, **{"x-api-key": "k"}), server.url, "a/f.bin")
    assert [request.headers["x-api-key"] for request in server.log] == ["k", "k"]
