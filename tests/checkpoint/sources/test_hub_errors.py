"""What the Hub's client raises, as one typed error that says what to do."""

from __future__ import annotations

import pytest

from shardload.checkpoint.sources import find_source
from shardload.checkpoint.sources.hub_errors import (
    Asked,
    from_client,
    from_status,
    is_broken_connection,
    is_unreachable,
)
from shardload.errors import AccessError, CorruptError, NotFoundError, ShardloadError
from shardload.where import Where

from .org_model import CONFIG, FILES, whole


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, NotFoundError), (500, NotFoundError), (403, AccessError), (404, NotFoundError)],
)
def test_a_download_that_the_server_refuses(hub, commit, status, error):
    hub.fault("org/model", "config.json", status=status)
    with pytest.raises(error) as caught:
        find_source("org/model")[0].open("config.json").read_at(0, 1)
    assert type(caught.value) is error
    assert caught.value.where == f"org/model@{commit}/config.json"
    assert caught.value.cure


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_a_missing_repo(hub, token):
    hub.commit("org/private", FILES, token="hf_right")
    with pytest.raises(NotFoundError, match="no repo 'org/nothing'") as caught:
        find_source(Where("org/nothing", token=token))
    assert type(caught.value) is NotFoundError
    assert "token=" in caught.value.cure


def test_a_private_repo_looks_missing_without_a_token(hub):
    hub.commit("org/private", FILES, token="hf_right")
    with pytest.raises(NotFoundError, match="may see"):
        find_source("org/private")


def test_a_missing_revision(hub, commit):
    with pytest.raises(NotFoundError, match="no revision 'dev'"):
        find_source(Where("org/model", revision="dev"))


def test_a_bad_token(hub, commit):
    with pytest.raises(AccessError, match="refused the token") as caught:
        find_source(Where("org/model", token="hf_wrong"))
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repo_lists_its_files_and_says_how_to_read_them(hub, token):
    hub.commit("org/other", FILES, token="hf_other")
    hub.commit("org/gated", FILES, token="hf_right", gated=True)
    source, _ = find_source(Where("org/gated", token=token))
    for read in [
        lambda: whole(source.open("config.json")),
        lambda: source.open("model.safetensors").read_at(0, 8),
    ]:
        with pytest.raises(AccessError, match="gated") as caught:
            read()
        assert f"{hub.url}/org/gated" in caught.value.cure
        assert "token=" in caught.value.cure
    assert whole(find_source(Where("org/gated", token="hf_right"))[0].open("config.json")) == CONFIG


def test_what_is_no_hub_at_all(hub, commit, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url + "/portal")
    with pytest.raises(NotFoundError):
        find_source("org/model")


def test_an_answer_that_is_not_the_hubs(hub, commit):
    for page in (b"<html>please log in</html>", b"[]", b"{}", b'{"id": "org/model"}'):
        hub.fault("org/model", page=page)
        with pytest.raises((NotFoundError, CorruptError)) as caught:
            find_source("org/model")
        assert "reached" not in caught.value.what


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(hub, commit, cache):
    cache.write_bytes(b"a file in the place of the folder")
    with pytest.raises(ShardloadError, match="written into the cache") as caught:
        find_source("org/model")[0].open("config.json").local_path()
    assert "cache_dir=" in caught.value.cure


FILE = Asked("org/model", "main", "model.safetensors", has_token=True)
REPO = Asked("org/model", "v2")


@pytest.mark.parametrize(
    ("status", "code", "asked", "error", "message"),
    [
        (429, "", FILE, NotFoundError, "limiting this caller's rate"),
        (503, "", FILE, NotFoundError, "can't serve at the moment"),
        (416, "", FILE, CorruptError, "shorter than the Hub's listing"),
        (401, "", FILE, AccessError, "refused the token"),
        (401, "", REPO, NotFoundError, "no repo 'org/model'"),
        (401, "RepoNotFound", FILE, NotFoundError, "no repo 'org/model'"),
        (403, "", FILE, AccessError, "may not be read with this token"),
        (403, "", REPO, AccessError, "may not be read without a token"),
        (403, "GatedRepo", FILE, AccessError, "is gated"),
        (404, "", FILE, NotFoundError, "the file 'model.safetensors' of 'org/model' is not there"),
        (404, "RevisionNotFound", REPO, NotFoundError, "no revision 'v2'"),
        (404, "", REPO, NotFoundError, "no repo 'org/model'"),
        (418, "", FILE, NotFoundError, "HTTP 418"),
    ],
)
def test_a_status_is_one_error(status, code, asked, error, message):
    made = from_status(status, code, asked)
    assert type(made) is error
    assert message in str(made)
    assert asked.place in made.where


def test_an_error_of_this_disk_is_not_the_networks():
    for cause in (OSError(28, "No space left on device"), PermissionError(13, "denied", "/cache/blobs/x")):
        made = from_client(cause, FILE)
        assert type(made) is ShardloadError
        assert "could not be written into the cache" in str(made)
    assert "could not be reached" in str(from_client(ConnectionRefusedError(111, "refused"), FILE))
    assert "another server answered" in str(from_client(ValueError("no JSON"), FILE))


def test_the_last_cause_is_what_is_said_and_a_circle_of_causes_ends():
    outer, inner = OSError("retries exceeded"), OSError("name not known\nand more")
    outer.__cause__, inner.__context__ = inner, outer
    made = from_client(outer, FILE)
    assert "could not be reached: name not known\n" in str(made)


def test_a_connection_is_told_from_an_answer():
    class RemoteDisconnectedError(ConnectionError):
        pass

    RemoteDisconnectedError.__name__ = "RemoteDisconnected"
    cut = OSError("x")
    cut.__cause__ = RemoteDisconnectedError()
    assert is_broken_connection(cut)
    assert is_unreachable(cut)
    assert not is_broken_connection(OSError("x"))
