"""Mutated files: what is accepted here, the oracle accepts with the same tensors; the rest is one typed error.

The seeds are fixed. `python -m tests.formats.test_fuzz COUNT` runs COUNT mutations of each kind from another seed.
"""

from __future__ import annotations

import io
import random
import re
import sys
import warnings

import pytest
import safetensors as library
import torch

from shardload.errors import ShardloadError
from shardload.formats import format_of
from shardload.tensor_ref import TORCH_NAMES

from .files import as_bytes, safetensors

ENTRIES = {
    "__metadata__": {"format": "pt", "é": "x"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b-0": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "I64", "shape": [0, 7], "data_offsets": [32, 32]},
    'q"\\': {"dtype": "U8", "shape": [], "data_offsets": [32, 33]},
    "f4": {"dtype": "F4", "shape": [2, 3], "data_offsets": [33, 36]},
}
PIECES = [
    b"0", b"-1", b"-0", b"1e0", b"2.0", b"9223372036854775808", b"18446744073709551616", b"null", b"true", b"[]",
    b"{}", b",", b":", b'"', b"\\", b"\\u0061", b"\\ud800", b"\xff", b"\xc3", b"\0", b" ", b"NaN", b"F16", b"4",
    b'"a.weight":', b"PK\1\2", b"PK\5\6", b"\x80\x02", b"R", b"Q", b"(", b"t", b"\x85", b"K\x01", b"J\xff\xff\xff\xff",
]  # fmt: skip


class MemoryFile:
    is_remote = False

    def __init__(self, data: bytes) -> None:
        self.name, self.data, self.size = "mutant.bin", data, len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def mutate(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 2, 8, 40)))
        data = rng.choice((
            lambda at=at, to=to, data=data: data[:at] + data[to:],
            lambda at=at, to=to, data=data: data[:to] + data[at:to] + data[to:],
            lambda at=at, data=data: data[:at] + rng.choice(PIECES) + data[at:],
            lambda at=at, to=to, data=data: data[:at] + rng.choice(PIECES) + data[to:],
            lambda at=at, data=data: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            lambda at=at, data=data: data[:at] + bytes([data[at % len(data)] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            lambda at=at, data=data: replace_number(rng, data, at),
        ))() or b"{"  # fmt: skip
    return data


def replace_number(rng: random.Random, data: bytes, at: int) -> bytes:
    """Change a decimal number of the text, so that many mutants stay well-formed."""
    found = re.compile(rb"\d+").search(data, at)
    if not found:
        return data
    number = str(max(0, int(found[0]) + rng.choice((-8, -1, 1, 8, 24)))).encode()
    return data[: found.start()] + number + data[found.end() :]


def outcome(data: bytes):
    """Return our reading as name: (dtype, shape, bytes), or None for one typed error."""
    file = MemoryFile(data)
    try:
        header = format_of(file).read_header(file)
    except ShardloadError as refusal:
        return None if refusal.cure and refusal.where else pytest.fail(f"no cure: {refusal}")
    found = {}
    for ref in header.tensors:
        raw = data[ref.span.start : ref.span.stop]
        assert len(raw) == ref.span.nbytes
        found[ref.name] = (ref.dtype, ref.shape, raw, ref.strides)
    return found


def fuzz_safetensors(seed: int, count: int) -> int:
    rng = random.Random(seed)
    whole = safetensors(ENTRIES, bytes(range(36)))
    header, accepted = whole[8:-36], 0
    for _ in range(count):
        data = safetensors(mutate(rng, header), whole[-36:]) if rng.random() < 0.9 else mutate(rng, whole)
        ours = outcome(data)
        if ours is None:
            continue
        accepted += 1
        theirs = {
            name: (view["dtype"], tuple(view["shape"]), bytes(view["data"]), None)
            for name, view in library.deserialize(data)
        }
        assert ours == theirs, data
    return accepted


def torch_file(as_zip: bool) -> bytes:
    base = torch.arange(24.0)
    state = torch.nn.Linear(2, 3).state_dict()
    state.update(
        a=base.view(4, 6), b=base[3:9:2], t=base.view(4, 6).t(), h=torch.ones(5).half(), i=torch.arange(300)
    )
    state["p"] = torch.nn.Parameter(torch.ones(2))
    if as_zip:
        state["f8"] = torch.ones(3).to(torch.float8_e4m3fn)
    state["extra"] = {"epoch": 3, "l": [1.5, None, True], "s": {1, 2}}
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=as_zip)
    return out.getvalue()


def fuzz_torch(seed: int, count: int, as_zip: bool) -> int:
    rng = random.Random(seed)
    torch.manual_seed(0)
    whole, accepted = torch_file(as_zip), 0
    for _ in range(count):
        data = mutate(rng, whole)
        ours = outcome(data)
        if ours is None:
            continue
        accepted += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        while not any(isinstance(value, torch.Tensor) for value in theirs.values()) and ours:
            theirs = next(theirs[key] for key in ("state_dict", "model") if key in theirs)
        expected = {name: value for name, value in theirs.items() if isinstance(value, torch.Tensor)}
        assert list(ours) == list(expected)
        for name, (code, shape, raw, strides) in ours.items():
            assert (TORCH_NAMES[code], shape) == (str(expected[name].dtype)[6:], tuple(expected[name].shape))
            dtype = expected[name].dtype
            flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            mine = flat.view(shape) if strides is None else flat.as_strided(shape, strides)
            assert as_bytes(mine) == as_bytes(expected[name]), name
    return accepted


def test_safetensors():
    assert fuzz_safetensors(seed=1, count=3000) > 50


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_torch(as_zip):
    assert fuzz_torch(seed=2, count=1200, as_zip=as_zip) > 50


if __name__ == "__main__":
    amount, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**9)
    print("seed", start)
    print("safetensors accepted:", fuzz_safetensors(start, amount))
    for zipped in (True, False):
        print("zip" if zipped else "legacy", "accepted:", fuzz_torch(start, amount, zipped))
