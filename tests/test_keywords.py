"""Keywords of other loaders are declined by name; names that nobody knows are Python's own TypeError."""

from __future__ import annotations

import pytest

from shardload import UnsupportedError, UsageError, from_pretrained
from tests.tiny import Net, random_state, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("device_map", "auto", "device="),
        ("offload_folder", "x", "mapped"),
        ("load_in_8bit", True, "dtype="),
        ("load_in_4bit", False, "dtype="),
        ("quantization_config", {}, "dtype="),
        ("gguf_file", "x.gguf", "safetensors"),
    ],
)
def test_what_is_not_built_is_declined_by_name(folder, name, value, cure):
    with pytest.raises(UnsupportedError, match=name) as caught:
        from_pretrained(folder, model_class=lambda _: Net(), **{name: value})
    assert cure in caught.value.cure


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("torch_dtype", "dtype="),
        ("low_cpu_mem_usage", "leave it out"),
        ("attn_implementation", "config="),
        ("use_safetensors", "safetensors"),
        ("key_mapping", "key_map="),
        ("use_auth_token", "token="),
    ],
)
def test_what_has_another_name_here_is_told(folder, name, cure):
    with pytest.raises(UsageError, match=name) as caught:
        from_pretrained(folder, model_class=lambda _: Net(), **{name: None})
    assert cure in caught.value.cure


def test_a_limit_by_device_is_refused_and_told_what_max_memory_is_here(folder):
    with pytest.raises(UsageError, match="max_memory") as caught:
        from_pretrained(folder, model_class=lambda _: Net(), max_memory={0: "1GB"})
    assert "anonymous memory" in caught.value.cure


def test_a_name_that_nobody_knows_is_a_type_error(folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        from_pretrained(folder, model_class=lambda _: Net(), devise="cpu")
