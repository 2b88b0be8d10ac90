"""Documents and weight files that would take gigabytes end in one typed error, in a process of 200 MB and 5 s."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile

import pytest

from tests.checkpoint.formats.files import safetensors, torch_zip

INDEX = "model.safetensors.index.json"


def deep() -> bytes:
    return b'{"a":' + b"[" * 5_000_000 + b"]" * 5_000_000 + b"}"


def lists() -> bytes:
    return b'{"a":[' + b"[]," * 20_000_000 + b"[]]}"


def objects() -> bytes:
    return b'{"a":' * 3_000_000 + b"1" + b"}" * 3_000_000


def numbers() -> bytes:
    return b'{"a":[' + b"1," * 30_000_000 + b"1]}"


def digits() -> bytes:
    return b'{"a":' + b"9" * 20_000_000 + b"}"


def wide() -> bytes:
    return b'{"a":"' + b"a" * 60_000_000 + "\U0001f600".encode() + b'"}'


def keys() -> bytes:
    return b'{"weight_map":{' + b",".join(b'"%d":"x"' % n for n in range(1_000_000)) + b"}}"


def compressed(entry: str) -> bytes:
    """Return a zip in which one entry of 100 MB is compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}." if entry != "data.pkl" else b"(" * 10**8)
        archive.writestr("model/version", b"3\n")
        if entry != "data.pkl":
            archive.writestr("model/data/0", bytes(10**8))
    return out.getvalue()


def header(shape, offsets=(0, 8)) -> bytes:
    return safetensors({"a": {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}}, bytes(8))


def quoted(entry: str, size: int) -> bytes:
    """Return a zip whose directory claims that an entry has `size` bytes."""
    data = bytearray(torch_zip(b"\x80\x02}.", {"0": bytes(8)}))
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(f"model/{entry}".encode()))
    data[at + 20 : at + 28] = min(size, 2**32 - 2).to_bytes(4, "little") * 2
    return bytes(data)


BOMBS = {
    "index: deep": (INDEX, deep),
    "index: lists": (INDEX, lists),
    "index: objects": (INDEX, objects),
    "index: numbers": (INDEX, numbers),
    "index: wide text": (INDEX, wide),
    "index: keys": (INDEX, keys),
    "index: 65 MB": (INDEX, lambda: b" " * (65 << 20)),
    "config: deep": ("config.json", deep),
    "config: lists": ("config.json", lists),
    "config: a number of 20,000,000 digits": ("config.json", digits),
    "config: objects": ("config.json", objects),
    "10^12 elements": ("model.safetensors", lambda: header([10**12])),
    "10^12 rows of nothing but one": ("model.safetensors", lambda: header([10**6, 10**6])),
    "10^18 elements, wrapping": ("model.safetensors", lambda: header([2**32, 2**32, 2**32])),
    "an offset of 10^15": ("model.safetensors", lambda: header([10**15 // 4], (0, 10**15))),
    "a header of 99 MB": ("model.safetensors", lambda: safetensors(b'{"a":[' + b"1," * 49_000_000 + b"1]}")),
    "a header that says 10^12": ("model.safetensors", lambda: safetensors({}, length=10**12)),
    "zip: a compressed storage": ("pytorch_model.bin", lambda: compressed("data/0")),
    "zip: a compressed pickle": ("pytorch_model.bin", lambda: compressed("data.pkl")),
    "zip: a storage of 4 GB": ("pytorch_model.bin", lambda: quoted("data/0", 2**32)),
    "zip: a pickle of 4 GB": ("pytorch_model.bin", lambda: quoted("data.pkl", 2**32)),
    "adapter: deep": ("adapter_config.json", deep),
    "adapter: lists": ("adapter_config.json", lists),
    "sums: 17 MB": ("SHA256SUMS", lambda: b"x" * (17 << 20)),
    "tokenizer: lists": ("tokenizer_config.json", lists),
    "tokenizer: deep": ("tokenizer_config.json", deep),
}  # fmt: skip

CODE = """
import re, sys, pathlib
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.checkpoint.json_file import read_config
from shardload.errors import ShardloadError
from shardload.checkpoint.json_file import read_json
from shardload.checkpoint.sources import find_source
from shardload.compare.verify.manifest import read_manifest
from tests.calls import has_an_end
folder, name = sys.argv[1:]
try:
    with has_an_end(20):
        source = find_source(folder)[0]
        if name == "SHA256SUMS":
            read_manifest(source)
        elif name.startswith(("adapter", "tokenizer")):
            read_json(source, name)
        else:
            open_checkpoint(folder)
    kind = "accepted"
except ShardloadError as error:
    kind = type(error).__name__
    assert len(str(error)) < 2000
high = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1000
print(kind, high)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_typed_error_small_and_quick(tmp_path, name):
    file, make = BOMBS[name]
    # A whole file beside an index is taken first, as transformers does; the index would not be read.
    if file != INDEX and not file.endswith((".safetensors", ".bin")):
        good = {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
        (tmp_path / "model.safetensors").write_bytes(safetensors(good, b"\0"))
    (tmp_path / file).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, str(tmp_path), file],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kind, megabytes = done.stdout.split()
    assert kind in {"CorruptError", "UnsupportedError", "UnsafeError"}
    assert int(megabytes) < 200


def test_an_honest_large_index_is_read(tmp_path):
    names = [
        f"model.layers.{n // 768}.mlp.experts.{n % 768 // 3}.down_proj.weight.{n % 3}" for n in range(92_000)
    ]
    weight_map = dict.fromkeys(names, "model-00001-of-00163.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))
    from shardload.checkpoint.json_file import read_json
    from shardload.checkpoint.sources import find_source

    assert len(read_json(find_source(tmp_path)[0], INDEX)["weight_map"]) == 92_000
