"""Headers of safetensors files: sound ones are accepted, and a table of false ones is refused."""

# ruff: noqa: E501  a table of headers reads best with a row a line
from __future__ import annotations

import json

import pytest
import safetensors as library
import torch

from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.formats.safetensors import SafetensorsFormat
from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import TORCH_NAMES
from tests.calls import calls_of

from .files import DistantFile, load_span, local, read, read_bytes, safetensors, same
from .test_gadgets import assert_small_and_quick

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = b"\0" * 8


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def library_reads(path):
    """Return {name: (dtype, shape, bytes)} as the safetensors library reads a file, or None when it refuses the file."""
    try:
        found = library.deserialize(path.read_bytes())
    except library.SafetensorError:
        return None
    return {name: (view["dtype"], tuple(view["shape"]), bytes(view["data"])) for name, view in found}


def assert_like_the_library(path):
    header = read(path)
    raw = path.read_bytes()
    ours = {ref.name: (ref.dtype, ref.shape, raw[ref.span.start : ref.span.stop]) for ref in header.tensors}
    assert ours == library_reads(path)
    assert all(ref.strides is None and ref.shard == path.name for ref in header.tensors)
    return header


def write_with_the_library(path, tensors, metadata=None):
    """Write without NumPy, which safetensors.torch would need."""
    specs = {
        name: library.TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.numel() * tensor.itemsize,
        )
        for name, tensor in tensors.items()
    }
    path.write_bytes(library.serialize(specs, metadata))


def test_every_dtype_that_torch_has(tmp_path):
    path = tmp_path / "model.safetensors"
    raw = torch.arange(48, dtype=torch.uint8) % 2
    dtypes = [
        getattr(torch, name) for code, name in TORCH_NAMES.items() if code != "C128" and hasattr(torch, name)
    ]
    state = {str(dtype): raw.view(dtype).clone() for dtype in dtypes}
    write_with_the_library(path, state, {"format": "pt"})
    header = assert_like_the_library(path)
    assert header.metadata == {"format": "pt"}
    assert len(header.tensors) == len(dtypes)
    for ref in header.tensors:
        assert same(load_span(path, ref), state[ref.name])


def test_shapes_and_names(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 5),
        "ü\u202e\n": torch.ones(2, 3, 4),
        "": torch.ones(1),
    }
    write_with_the_library(path, state)
    header = assert_like_the_library(path)
    assert {ref.name: ref.shape for ref in header.tensors} == {
        name: tuple(t.shape) for name, t in state.items()
    }


def test_what_safetensors_torch_writes(tmp_path):
    pytest.importorskip("numpy")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    state = {f"layer.{i}.weight": torch.randn(3, i).to(torch.bfloat16) for i in range(20)}
    save_file(state, path, {"format": "pt"})
    header = assert_like_the_library(path)
    for name, tensor in load_file(path).items():
        assert same(load_span(path, next(ref for ref in header.tensors if ref.name == name)), tensor)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"a": F32},
        {"a": entry("F4", (4, 4), (0, 8))},
        {"a": entry("F6_E2M3", (4, 4), (0, 12))},
        {"a": entry("C64", (1,), (0, 8))},
        {"__metadata__": {}, "a": F32},
        {"__metadata__": None, "a": F32},
        " " + json.dumps({"a": F32}),
        "\t\r\n " + json.dumps({"a": F32}) + " \n",
        json.dumps({"a": F32}).rjust(4088),
        {"b": entry("U8", (3,), (5, 8)), "a": entry("U8", (5,), (0, 5))},
        {"a": F32, "none": entry(shape=(0,), offsets=(8, 8)), "zero": entry(shape=(0,), offsets=(0, 0))},
        {"a": entry(shape=(2**62, 0), offsets=(0, 0))},
        '{"a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}     ',
        '{ "a\\u00e9" : {"dtype":"F32","shape":[ 2 ],"data_offsets":[0 , 8]}\n}\t\r\n ',
        '{"\\ud83d\\ude00":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"x-0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"\\u0064type":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_accepted_like_the_library(tmp_path, header):
    path = tmp_path / "model.safetensors"
    spans = header if isinstance(header, dict) else json.loads(header)
    size = max((info["data_offsets"][1] for name, info in spans.items() if name != "__metadata__"), default=0)
    path.write_bytes(safetensors(header, bytes(range(size))))
    assert_like_the_library(path)


# Each header with a part of its error. The last column marks headers that the library accepts; we still refuse them.
LIES = [
    ("length beyond 100 MB", safetensors({"a": F32}, EIGHT, length=100_000_001), "the limit is 100,000,000", False),
    ("length of 2^40 - 1", safetensors({"a": F32}, EIGHT, length=2**40 - 1), "it claims", False),
    ("length beyond the file", safetensors({"a": F32}, b"", length=90), "29 bytes before that", False),
    ("length 0", safetensors({"a": F32}, EIGHT, length=0), "it claims 0 bytes", False),
    ("length 1", safetensors({"a": F32}, EIGHT, length=1), "it claims 1 bytes", False),
    ("length short by one", safetensors({"a": F32}, EIGHT, length=60), "Expecting ',' delimiter", False),
    ("length long by one", safetensors({"a": F32}, EIGHT, length=62), "Extra data", False),
    ("three bytes", b"\x02\0\0", "the file has 3 bytes", False),
    ("leading NUL", safetensors("\0" + json.dumps({"a": F32}), EIGHT), "it must start with", False),
    ("leading no-break space", safetensors("\u00a0" + json.dumps({"a": F32}), EIGHT), "it must start with", False),
    ("leading form feed", safetensors("\f" + json.dumps({"a": F32}), EIGHT), "it must start with", False),
    ("blanks alone", safetensors(" " * 64), "it must start with", False),
    ("a list", safetensors("[]"), "it must start with", False),
    ("no JSON", safetensors("{nonsense}"), "Expecting property name", False),
    ("trailing NUL", safetensors(json.dumps({"a": F32}) + "\0", EIGHT), "Extra data", False),
    ("trailing brace", safetensors(json.dumps({"a": F32}) + "}", EIGHT), "Extra data", False),
    ("trailing comma", safetensors('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}', EIGHT), "Expecting property name|Illegal", False),
    ("not UTF-8", safetensors(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "utf-8", False),
    ("overlong UTF-8", safetensors(b'{"\xc0\xaf":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "utf-8", False),
    ("half a surrogate pair", safetensors('{"\\ud800":' + json.dumps(F32) + "}", EIGHT), "surrogate", False),
    ("half a pair in metadata", safetensors('{"__metadata__":{"a":"\\udc00"}}'), "surrogate", False),
    ("control character in a name", safetensors('{"a\n":' + json.dumps(F32) + "}", EIGHT), "control character", False),
    ("same tensor twice", safetensors(f'{{"a":{json.dumps(F32)},"a":{json.dumps(F32)}}}', EIGHT), "'a' stands twice", True),
    ("same tensor escaped", safetensors(f'{{"a":{json.dumps(F32)},"\\u0061":{json.dumps(F32)}}}', EIGHT), "twice", True),
    ("same field twice", safetensors('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "twice", False),
    ("same metadata twice", safetensors('{"__metadata__":{"a":"b","a":"c"}}'), "twice", True),
    ("metadata twice", safetensors('{"__metadata__":{},"__metadata__":{}}'), "twice", False),
    ("metadata that is a list", safetensors({"__metadata__": []}), "__metadata__", False),
    ("metadata of numbers", safetensors({"__metadata__": {"a": 1}}), "__metadata__", False),
    ("metadata of nulls", safetensors({"__metadata__": {"a": None}}), "__metadata__", False),
    ("unknown dtype", safetensors({"a": entry("F33")}, EIGHT), "unknown dtype 'F33'", False),
    ("dtype in lower case", safetensors({"a": entry("f32")}, EIGHT), "unknown dtype", False),
    ("dtype of pickles only", safetensors({"a": entry("C128", (1,), (0, 16))}, EIGHT * 2), "unknown dtype 'C128'", False),
    ("dtype that is a number", safetensors({"a": entry(32)}, EIGHT), "unknown dtype", False),
    ("dtype that is a list", safetensors({"a": entry(["F32"])}, EIGHT), "unknown dtype", False),
    ("no dtype", safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT), "exactly dtype", False),
    ("unknown field", safetensors({"a": F32 | {"stride": [1]}}, EIGHT), "exactly dtype", True),
    ("tensor that is a list", safetensors({"a": ["F32", [2], [0, 8]]}, EIGHT), "exactly dtype", True),
    ("tensor that is null", safetensors({"a": None}), "exactly dtype", False),
    ("tensor that is a text", safetensors({"a": "abc"}), "exactly dtype", False),
    ("shape that is a number", safetensors({"a": F32 | {"shape": 2}}, EIGHT), "shape must be a list", False),
    ("dimension -1", safetensors({"a": entry(shape=(-1,))}, EIGHT), "-1 in the shape", False),
    ("dimension -0", safetensors('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "-0 is negative", False),
    ("dimension 2.0", safetensors({"a": entry(shape=(2.0,))}, EIGHT), "2.0 in the shape", False),
    ("dimension 2e0", safetensors('{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', EIGHT), "2.0 in", False),
    ("dimension true", safetensors({"a": entry(shape=(True, 2))}, EIGHT), "True in the shape", False),
    ("dimension null", safetensors({"a": entry(shape=(None,))}, EIGHT), "None in the shape", False),
    ("dimension NaN", safetensors('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', EIGHT), "NaN is not JSON", False),
    ("dimension 02", safetensors('{"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}}', EIGHT), "delimiter", False),
    ("dimension 2^63", safetensors({"a": entry(shape=(2**63, 0), offsets=(0, 0))}), "2\\^63-1", True),
    ("dimension 2^64", safetensors({"a": entry(shape=(2**64,))}, EIGHT), "2\\^63-1", False),
    ("dimension of 5000 digits", safetensors('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}', EIGHT), "digits", False),
    ("product overflows", safetensors({"a": entry(shape=(2**32, 2**32))}, EIGHT), "2\\^63-1", False),
    ("product wraps to 2", safetensors({"a": entry(shape=(2**63, 2, 3))}, EIGHT), "2\\^63-1", False),
    ("overflow hidden by 0", safetensors({"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}), "2\\^63-1", False),
    ("bits overflow", safetensors({"a": entry("F64", (2**61,))}, EIGHT), "takes", False),
    ("three offsets", safetensors({"a": entry(offsets=(0, 4, 8))}, EIGHT), "a list of two", False),
    ("one offset", safetensors({"a": entry(offsets=(8,))}, EIGHT), "a list of two", False),
    ("offsets reversed", safetensors({"a": entry(offsets=(8, 0))}, EIGHT), "not a span", False),
    ("offset -8", safetensors({"a": entry(offsets=(-8, 0))}, EIGHT), "not a span", False),
    ("offset 0.0", safetensors({"a": entry(offsets=(0.0, 8))}, EIGHT), "not a span", False),
    ("offset false", safetensors({"a": entry(offsets=(False, 8))}, EIGHT), "not a span", False),
    ("offset 2^64", safetensors({"a": entry(offsets=(2**64, 2**64 + 8))}, EIGHT), "gap", False),
    ("span too long", safetensors({"a": entry(offsets=(0, 12))}, EIGHT + b"four"), "takes 8.0 bytes, data_offsets give it 12", False),
    ("span too short", safetensors({"a": entry(offsets=(0, 7))}, EIGHT), "give it 7", False),
    ("half a byte", safetensors({"a": entry("F4", (3,), (0, 1))}, b"\0"), "takes 1.5 bytes", False),
    ("hole at the start", safetensors({"a": entry(offsets=(4, 12))}, EIGHT + b"four"), "leaves a gap", False),
    ("hole in between", safetensors({"a": F32, "b": entry(offsets=(12, 20))}, bytes(20)), "leaves a gap", False),
    ("overlap", safetensors({"a": F32, "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps", False),
    ("alias", safetensors({"a": F32, "b": F32}, EIGHT), "overlaps", False),
    ("one byte missing", safetensors({"a": F32}, bytes(7)), "truncated: 1 bytes are missing", False),
    ("all data missing", safetensors({"a": F32}), "truncated: 8 bytes are missing", False),
    ("one byte too many", safetensors({"a": F32}, bytes(9)), "1 bytes follow", False),
    ("bytes beyond no tensor", safetensors({}, bytes(3)), "3 bytes follow", False),
    ("deeply nested", safetensors('{"a":' + "[" * 50_000 + "]" * 50_000 + "}"), "nested too deeply|exactly dtype", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message", "library_accepts"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES]
)
def test_headers_that_lie(tmp_path, data, message, library_accepts):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=message) as caught:
        SafetensorsFormat().read_header(local(path))
    assert "model.safetensors" in str(caught.value)
    assert caught.value.cure
    assert (library_reads(path) is not None) == library_accepts
    with pytest.raises(CorruptError):
        read(path)


def test_the_key_is_named_and_escaped(tmp_path):
    with pytest.raises(CorruptError) as caught:
        read_bytes(tmp_path, safetensors({"evil\u202e\x1b[2J": entry("X")}, EIGHT), "model.safetensors")
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert "evil" in str(caught.value)


def test_truncated_anywhere_is_one_corrupt_error(tmp_path):
    whole = safetensors({f"t{i}": entry(offsets=(8 * i, 8 * i + 8)) for i in range(20)}, bytes(160))
    for length in [*range(10), *range(10, len(whole), 11), len(whole) - 1]:
        with pytest.raises(CorruptError):
            read_bytes(tmp_path, whole[:length], "model.safetensors")


def test_a_long_header_takes_two_reads_from_afar(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        safetensors({f"tensor{i}": entry("U8", (1,), (i, i + 1)) for i in range(3000)}, bytes(3000))
    )
    distant = DistantFile(path)
    assert len(format_of(distant).read_header(distant).tensors) == 3000
    assert len(distant.reads) == 3  # the first read is by format_of
    assert sum(length for _, length in distant.reads) < path.stat().st_size + 70_000


BOMBS = {
    "lists": lambda: b'{"a":[' + b"[]," * 30_000_000 + b"[]]}",
    "dicts": lambda: b'{"a":[' + b"{}," * 30_000_000 + b"{}]}",
    "ints": lambda: b'{"a":[' + b"1000," * 19_000_000 + b"1]}",
    "wide text": lambda: b'{"a":"' + b"a" * 90_000_000 + "\U0001f600".encode() + b'"}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_small_and_quick(tmp_path, name):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(safetensors(BOMBS[name]()))
    with pytest.raises(UnsupportedError, match="MB to parse"):
        read(path)
    assert_small_and_quick(path)


def test_many_tensors_are_quick(tmp_path):
    """The calls for each tensor are counted: work that is not linear has more of them."""
    count = 30_000
    names = [f"model.layers.{i // 300}.mlp.experts.{i % 300}.down_proj.weight" for i in range(count)]
    header = {name: entry("F16", (2, 2), (8 * i, 8 * i + 8)) for i, name in enumerate(names)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(header, bytes(8 * count)))
    found = []
    assert calls_of(lambda: found.extend(read(path).tensors)) < 30 * count
    assert [ref.name for ref in found] == names
