"""StoreAddress: what an address names, and what obstore is told."""

from __future__ import annotations

import sys
import traceback

import pytest

import shardload
from shardload.checkpoint.sources.store_address import StoreAddress
from shardload.errors import UnsupportedError, UsageError
from shardload.where import Where


@pytest.mark.parametrize(
    ("text", "root", "named"),
    [
        ("s3://bucket", "s3://bucket", None),
        ("s3://bucket/a//b/", "s3://bucket/a/b", None),
        ("S3://bucket/a/model.safetensors", "s3://bucket/a", "model.safetensors"),
        ("gs://bucket/model.safetensors.index.json", "gs://bucket", "model.safetensors.index.json"),
        ("az://account/container/model.fp16.bin", "az://account/container", "model.fp16.bin"),
        ("abfss://box@account.dfs.core.windows.net/x", "abfss://box@account.dfs.core.windows.net/x", None),
        ("https://host:8443/models/glm/", "https://host:8443/models/glm", None),
        ("https://host/m/pytorch_model.bin.index.json", "https://host/m", "pytorch_model.bin.index.json"),
        ("s3://bucket/step-10/.metadata", "s3://bucket/step-10", ".metadata"),
    ],
)
def test_an_address_is_a_root_and_perhaps_a_file(text, root, named):
    assert StoreAddress.of(text) == StoreAddress(root, named)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/x?token=SECRET",
        "https://user:SECRET@host/x",
        "https://host/x#SECRET",
        "s3:///x",
        "s3://bucket/../x",
        "https://huggingface.co/org/name",
        "https://[::1/SECRET",
    ],
)
def test_an_address_with_a_secret_or_without_a_place_is_refused_and_not_shown(text):
    with pytest.raises(UsageError) as caught:
        shardload.open_checkpoint(text)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_paths_and_names_of_the_hub_are_no_addresses(tmp_path):
    others = ["org/name", "./s3", "C:\\models", tmp_path, "file:///x", "s3:/x", "s3:", "s3", "gs"]
    assert [name for name in others if Where(name).is_in_store] == []


def test_options_have_the_names_of_obstore_or_of_fsspec():
    s3, web = StoreAddress("s3://bucket"), StoreAddress("http://host")
    assert s3.settings(
        {"key": "k", "secret": "s", "token": "t", "anon": True, "endpoint_url": "http://e"}
    ) == {
        "access_key_id": "k",
        "secret_access_key": "s",
        "session_token": "t",
        "skip_signature": True,
        "endpoint": "http://e",
    }
    assert s3.settings({"region": "r", "allow_http": True, "client_options": {"timeout": "5s"}}) == {
        "region": "r",
        "client_options": {"allow_http": True, "timeout": "5s"},
    }
    assert StoreAddress("az://a/c").settings({"sas_token": "s"}) == {"sas_key": "s"}
    assert StoreAddress("gs://b").settings({"token": "t"}) == {"token": "t"}
    assert web.settings(None) == {"client_options": {"allow_http": True}}
    assert StoreAddress("https://host").settings(None) == {}


@pytest.mark.parametrize(
    "options",
    ["SECRET", ["SECRET"], {1: "SECRET"}, {"client_options": "SECRET"}, {"client_options": ["SECRET"]}],
)
def test_options_that_are_none_are_refused_and_not_shown(options):
    pytest.importorskip("obstore")
    for address in ("s3://bucket/x", "http://127.0.0.1:1/x"):
        with pytest.raises(UsageError, match="does not suit this store") as caught:
            shardload.open_checkpoint(address, storage_options=options)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_options_of_a_store_go_to_no_other_one():
    place = Where("s3://bucket/base", storage_options={"key": "SECRET"})
    assert place.elsewhere("s3://bucket/lora").storage_options == {"key": "SECRET"}
    for other in ("s3://other/lora", "https://bucket/lora", "gs://bucket/lora", "./lora"):
        assert place.elsewhere(other).storage_options is None
    assert Where("./base", storage_options={"key": "k"}).elsewhere("s3://bucket/lora").storage_options == {
        "key": "k"
    }
    assert "SECRET" not in f"{place} {place.as_arguments} {place.in_python}"


def test_without_obstore_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UnsupportedError, match="obstore, which is not installed") as caught:
        shardload.open_checkpoint("s3://bucket/x")
    assert caught.value.cure.startswith("pip install obstore")
