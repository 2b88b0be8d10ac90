"""Mutated weight files: what is accepted here, the oracle accepts with the same tensors; the rest is one typed error.

The oracles are the safetensors library and torch's own weights-only loader.
"""

from __future__ import annotations

import io
import random
import warnings

import safetensors as library
import torch

from shardload.checkpoint.checkpoint import format_of
from shardload.errors import ShardloadError
from shardload.tensor_ref import TORCH_NAMES
from tests.checkpoint.formats.files import as_bytes, safetensors
from tests.fuzz.mutation import MemoryFile, mutate
from tests.fuzz.tally import Tally

ENTRIES = {
    "__metadata__": {"format": "pt", "é": "x"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b-0": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "I64", "shape": [0, 7], "data_offsets": [32, 32]},
    'q"\\': {"dtype": "U8", "shape": [], "data_offsets": [32, 33]},
    "f4": {"dtype": "F4", "shape": [2, 3], "data_offsets": [33, 36]},
}
# What the library takes and shardload refuses on purpose: each is a way to read one file as two.
STRICTER = (
    "stands twice", "it must start with", "exactly dtype", "__metadata__ must map", "more than 2^63-1 elements",
)  # fmt: skip


def reading(data: bytes) -> dict | ShardloadError:
    """Return our reading as name: (dtype, shape, bytes, strides), or the one typed error."""
    file = MemoryFile(data)
    try:
        header = format_of(file).read_header(file)
    except ShardloadError as refusal:
        if not (refusal.cure and refusal.where):
            raise AssertionError(f"no cure, or no place: {refusal}") from refusal
        return refusal
    found = {}
    for ref in header.tensors:
        raw = data[ref.span.start : ref.span.stop]
        assert len(raw) == ref.span.nbytes
        found[ref.name] = (ref.dtype, ref.shape, raw, ref.strides)
    return found


def librarys_reading(data: bytes) -> dict | None:
    try:
        found = library.deserialize(data)
    except library.SafetensorError:
        return None
    return {name: (view["dtype"], tuple(view["shape"]), bytes(view["data"]), None) for name, view in found}


def fuzz_safetensors(seed: int, count: int) -> Tally:
    """Mutate headers and whole files, and compare with the safetensors library both ways."""
    rng = random.Random(seed)
    whole = safetensors(ENTRIES, bytes(range(36)))
    header, tally = whole[8:-36], Tally()
    for _ in range(count):
        data = safetensors(mutate(rng, header), whole[-36:]) if rng.random() < 0.9 else mutate(rng, whole)
        tally.tried += 1
        try:
            ours = reading(data)
        except Exception as error:
            tally.wrong(data, error)
            continue
        theirs = librarys_reading(data)
        if isinstance(ours, ShardloadError):
            # With a space before the brace it is not even taken for this format.
            spaced = data[8:9].isspace()
            if theirs is None or spaced or any(reason in ours.what for reason in STRICTER):
                tally.refused += 1
            else:
                tally.wrong(data, ours)
        elif ours == theirs or (theirs is None and _is_pickle_or_zip(data)):
            tally.accepted += 1
        else:
            tally.wrong(data, (ours, theirs))
    return tally


def _is_pickle_or_zip(data: bytes) -> bool:
    return format_of(MemoryFile(data)).name != "safetensors"


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


def fuzz_torch(seed: int, count: int, as_zip: bool) -> Tally:
    """Mutate .bin files of either format; what is accepted, torch's weights-only loader reads as the same tensors."""
    rng = random.Random(seed)
    torch.manual_seed(0)
    whole, tally = torch_file(as_zip), Tally()
    for _ in range(count):
        data = mutate(rng, whole)
        tally.tried += 1
        try:
            ours = reading(data)
            if isinstance(ours, ShardloadError):
                tally.refused += 1
            else:
                _compare_with_torch(ours, data)
                tally.accepted += 1
        except Exception as error:
            tally.wrong(data, error)
    return tally


def _compare_with_torch(ours: dict, data: bytes) -> None:
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
