"""GGUF files that the `gguf` package writes, and files by hand that are not right."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec

import pytest
import torch

import shardload
from shardload.checkpoint.formats.gguf import GgufFormat


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def by_hand(path, tensors, values=(), version=3, alignment=32, cut=None):
    """Write a file: tensors are (name, shape, type, offset, bytes), values (name, kind, packed)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for name, kind, packed in values:
        head += text(name) + struct.pack("<I", kind) + packed
    for name, shape, code, offset, _ in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", code, offset)
    content = head + bytes(-len(head) % alignment)
    start = len(content)
    for _, _, _, offset, data in tensors:
        content = content.ljust(start + offset, b"\0")
        content = content[: start + offset] + data + content[start + offset + len(data) :]
    path.write_bytes(content[:cut] if cut is not None else content)
    return path


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_plain_tensors_are_views_of_the_file(tmp_path):
    path = by_hand(
        tmp_path / "m.gguf",
        [("a", (2, 3), 0, 0, floats(*range(6))), ("b", (2,), 1, 32, b"\0\x3c\0\x3c")],
        [("general.architecture", 8, text("llama")), ("n", 4, struct.pack("<I", 7)),
         ("tokens", 9, struct.pack("<IQ", 8, 100) + text("x") * 100)],
    )  # fmt: skip
    checkpoint = shardload.open_checkpoint(path)
    assert checkpoint.format == "gguf"
    assert {name: (ref.dtype, ref.shape) for name, ref in checkpoint.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (2,)),
    }
    assert checkpoint.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.read("b").tolist() == [1, 1]
    told = json.loads(checkpoint.metadata["gguf"])
    assert told == {"types": {}, "values": {"general.architecture": "llama", "n": 7}}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_1"])
def test_a_file_of_the_package_is_read_as_the_package_reads_it(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    packed = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "starcoder")
    writer.add_uint32("starcoder.block_count", 1)
    writer.add_token_list(["a", "b"] * 100)
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("output_norm.weight", weight[0].numpy())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    checkpoint = shardload.open_checkpoint(tmp_path / "m.gguf")
    plain = shardload.dequantised(checkpoint, "float32")
    own = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[kind]))
    assert plain.packing == f"GGUF {kind}"
    assert torch.equal(plain.read("blk.0.attn_q.weight"), own)
    assert torch.equal(plain.read("blk.0.attn_q.weight", (slice(2, 5), slice(3, 40))), own[2:5, 3:40])
    assert torch.equal(plain.read("output_norm.weight"), weight[0])
    written = shardload.convert(tmp_path / "m.gguf", tmp_path / "out", dtype="bfloat16")
    assert torch.equal(shardload.open_checkpoint(written.folder).read("blk.0.attn_q.weight"), own.bfloat16())


GOOD = [("a", (2, 4), 0, 0, floats(*range(8)))]
LONG = struct.pack("<Q", 1 << 40)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: by_hand(path, GOOD, cut=60),
        lambda path: by_hand(path, GOOD, cut=12),
        lambda path: by_hand(path, [("a", (2,), 0, 4, floats(1, 2))]),
        lambda path: by_hand(path, GOOD, cut=-4),
        lambda path: by_hand(path, [*GOOD, ("a", (1,), 0, 32, floats(1))]),
        lambda path: by_hand(path, [*GOOD, ("b", (2,), 0, 16, floats(1, 2))]),
        lambda path: by_hand(path, [("a", (2, 30), 2, 0, bytes(72))]),
        lambda path: by_hand(path, [("a", (1 << 41,), 0, 0, b"")]),
        lambda path: by_hand(path, GOOD, [("x", 99, b"")]),
        lambda path: by_hand(path, GOOD, [("x", 8, LONG)]),
        lambda path: by_hand(path, GOOD, [("x", 9, struct.pack("<I", 0) + LONG)]),
        lambda path: by_hand(path, GOOD, [("general.alignment", 4, struct.pack("<I", 0))]),
    ],
)
def test_tables_that_can_not_be_right_are_refused(tmp_path, write):
    with pytest.raises(shardload.CorruptError, match="the GGUF file") as caught:
        shardload.open_checkpoint(write(tmp_path / "m.gguf"))
    assert "m.gguf" in caught.value.where


def test_what_is_not_read_is_declined_by_name(tmp_path):
    by_hand(tmp_path / "type.gguf", [("a", (32,), 99, 0, bytes(64))])
    with pytest.raises(shardload.UnsupportedError, match="type 99"):
        shardload.open_checkpoint(tmp_path / "type.gguf")
    for begin, what in ((b"GGUF\1\0\0\0", "version 1"), (b"GGUF\0\0\0\3", "big-endian")):
        (tmp_path / "other.gguf").write_bytes(begin + bytes(40))
        with pytest.raises(shardload.UnsupportedError, match=what):
            shardload.open_checkpoint(tmp_path / "other.gguf")
    assert not GgufFormat().matches(b"GGUF\1\0\0\0" + bytes(24))


@pytest.mark.skipif(find_spec("gguf") is not None, reason="the package is there")
def test_a_type_whose_tables_are_in_the_package_says_what_to_install(tmp_path):
    path = by_hand(tmp_path / "m.gguf", [("a", (1, 256), 16, 0, bytes(66))])
    with pytest.raises(shardload.UnsupportedError, match="IQ2_XXS") as caught:
        shardload.dequantised(shardload.open_checkpoint(path), "bfloat16")
    assert caught.value.cure == "pip install gguf"


def test_a_class_with_the_names_of_the_file_is_filled_under_them(tmp_path):
    path = by_hand(
        tmp_path / "m.gguf",
        [("blk.weight", (2, 32), 8, 0, b"\0\x3c" + bytes(range(32)) + b"\0\x40" + bytes(range(32)))],
        [("general.architecture", 8, text("llama"))],
    )
    model = torch.nn.ModuleDict({"blk": torch.nn.Linear(32, 2, bias=False)})
    shardload.fill(model, shardload.open_checkpoint(path), dtype="float32")
    assert torch.equal(model["blk"].weight, torch.arange(32.0) * torch.tensor([[1.0], [2.0]]))


def test_a_file_without_packed_weights_is_loaded_as_it_is(tmp_path):
    path = by_hand(
        tmp_path / "m.gguf",
        [("output_norm.weight", (4,), 0, 0, floats(1, 2, 3, 4))],
        [("general.architecture", 8, text("llama"))],
    )
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4, bias=False)})})
    report = shardload.fill(model, shardload.open_checkpoint(path))
    assert model["model"]["norm"].weight.tolist() == [1, 2, 3, 4]
    assert report.packing == "GGUF"
    assert not any("packed" in note for note in report.notes)
