"""Headers of files by torch.save give the tensors of torch.load(weights_only=True), byte for byte."""

from __future__ import annotations

from collections import Counter, OrderedDict

import pytest
import torch

from shardload.checkpoint.checkpoint import format_of, open_checkpoint
from shardload.errors import CorruptError, UnsafeError, UnsupportedError
from shardload.tensor_ref import TORCH_NAMES

from .files import DistantFile, load_span, local, read, same

ZIP_OR_LEGACY = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
OLD_DTYPES = torch.storage._dtype_to_storage_type_map()
DTYPES = [getattr(torch, name) for name in TORCH_NAMES.values() if hasattr(torch, name)]


def save(tmp_path, state, as_zip=True, name="model.bin"):
    path = tmp_path / name
    torch.save(state, path, _use_new_zipfile_serialization=as_zip)
    return path


def assert_like_torch(path):
    header = read(path)
    oracle = torch.load(path, weights_only=True)
    tensors = {key: value for key, value in oracle.items() if isinstance(value, torch.Tensor)}
    assert [ref.name for ref in header.tensors] == list(tensors)
    for ref in header.tensors:
        theirs = tensors[ref.name]
        assert ref.shard == path.name
        assert (ref.strides is None) == theirs.is_contiguous()
        assert same(load_span(path, ref), theirs), ref
    return header


@ZIP_OR_LEGACY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype, as_zip):
    state = {"w": (torch.arange(48, dtype=torch.uint8) % 2).view(dtype).clone()}
    path = save(tmp_path, state, as_zip)
    if as_zip or dtype in OLD_DTYPES:
        header = assert_like_torch(path)
    else:
        # torch 2.13 writes such a file but can't read it.
        header = read(path)
        assert same(load_span(path, header.tensors[0]), state["w"])
    assert TORCH_NAMES[header.tensors[0].dtype] == str(dtype).removeprefix("torch.")


@ZIP_OR_LEGACY
def test_views_shared_storages_and_odd_shapes(tmp_path, as_zip):
    base = torch.arange(60, dtype=torch.float32)
    table = base.view(6, 10)
    state = {
        "whole": base,
        "rows": table[2:4],
        "columns": table[:, 3:7],
        "transposed": table.t(),
        "step": base[1:50:7],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "zero_dim": torch.tensor(7.0),
        "element": base[13],
        "empty": torch.empty(0, 4),
        "empty_tail": base[60:],
        "ones": torch.ones(1, 1, 5).as_strided((1, 1, 5), (99, 7, 1)),
        "channels_last": torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "tied": table,
    }
    header = assert_like_torch(save(tmp_path, state, as_zip))
    spans = {ref.name: ref.span for ref in header.tensors}
    assert spans["whole"] == spans["tied"]
    assert spans["rows"].nbytes == 80


@ZIP_OR_LEGACY
def test_parameters_and_attributes(tmp_path, as_zip):
    marked = torch.ones(2)
    marked.note = "kept by torch"
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.tag = 1
    state = {
        "p": torch.nn.Parameter(torch.arange(4.0)),
        "frozen": torch.nn.Parameter(torch.arange(4), requires_grad=False),
        "marked": marked,
        "parameter": parameter,
        "grad": torch.ones(2, requires_grad=True),
    }
    assert len(assert_like_torch(save(tmp_path, state, as_zip)).tensors) == 5


@ZIP_OR_LEGACY
def test_metadata_and_other_entries(tmp_path, as_zip):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    extra = {
        "epoch": 3,
        "rate": 0.5,
        "none": None,
        "flag": True,
        "big": 10**30,
        "name": "ü",
        "list": [1, [2.5]],
    }
    extra |= {"tuple": (1, "a"), "set": {1, 2}, "bytes": b"\x00\xff", "array": bytearray(b"ab"), "z": 1 + 2j}
    extra |= {"ordered": OrderedDict(a=1), "counter": Counter("aab"), "size": torch.Size([2, 3]), 7.5: "x"}
    state["1._extra_state"] = extra
    header = assert_like_torch(save(tmp_path, state, as_zip))
    assert header.objects == {"1._extra_state": extra}
    assert header.versions == {path: dict(entry) for path, entry in state._metadata.items()}
    assert header.versions["1"] == {"version": 2}


@ZIP_OR_LEGACY
def test_no_tensors_at_all(tmp_path, as_zip):
    assert assert_like_torch(save(tmp_path, {}, as_zip)).tensors == ()


@ZIP_OR_LEGACY
def test_many_tensors(tmp_path, as_zip):
    state = OrderedDict((f"layers.{i}.weight", torch.full((2, 3), float(i))) for i in range(700))
    assert len(assert_like_torch(save(tmp_path, state, as_zip)).tensors) == 700


ODD_VALUES = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "conj bit": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "neg bit": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "meta": lambda: torch.empty(2, device="meta"),
    "a tensor in a nested entry": lambda: [{"scale": torch.ones(1)}],
    "torch.float16": lambda: [torch.float16],
    "torch.device": lambda: torch.device("cpu"),
}


@ZIP_OR_LEGACY
@pytest.mark.parametrize("kind", ODD_VALUES)
@pytest.mark.filterwarnings("ignore:.*quantiz:UserWarning", "ignore:.*quantiz:DeprecationWarning")
def test_kinds_without_a_reference_are_named(tmp_path, kind, as_zip):
    path = save(tmp_path, {"good": torch.ones(1), "odd.one": ODD_VALUES[kind]()}, as_zip)
    with pytest.raises(UnsupportedError, match=kind) as caught:
        read(path)
    assert "odd.one" in str(caught.value)
    assert path.name in str(caught.value)


def test_all_unreadable_entries_are_named_at_once(tmp_path):
    path = save(tmp_path, {f"sparse{i}": torch.eye(2).to_sparse() for i in range(8)})
    with pytest.raises(UnsupportedError, match=r"'sparse0'.*'sparse4'.*and 3 more"):
        read(path)


def test_a_sparse_tensor_outside_the_state_dict_is_no_fault(tmp_path):
    path = save(tmp_path, {"state_dict": {"w": torch.ones(1)}, "mask": torch.eye(2).to_sparse()})
    assert read(path).discarded == ("mask",)


def test_numpy_values_are_named(tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1), "stats": numpy.ones(2)}, path)
    with pytest.raises(UnsupportedError, match="NumPy") as caught:
        read(path)
    assert "'stats'" in str(caught.value)


def test_a_whole_model_is_refused(tmp_path):
    with pytest.raises((UnsupportedError, UnsafeError)):
        read(save(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_pickle_protocols_are_named(tmp_path, protocol):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1)}, path, pickle_protocol=protocol)
    with pytest.raises(UnsupportedError, match=f"protocol {protocol}"):
        read(path)


def test_a_remote_legacy_file_takes_two_reads(tmp_path):
    path = tmp_path / "model.bin"
    torch.save({f"w{i}": torch.ones(10_000) for i in range(60)}, path, _use_new_zipfile_serialization=False)
    distant = DistantFile(path)
    assert format_of(distant).read_header(distant) == read(path)
    assert len(distant.reads) == 2


def test_a_legacy_pickle_longer_than_the_first_read(tmp_path):
    names = [f"{'a-long-module-name.' * 8}{i}" for i in range(2000)]
    path = save(tmp_path, {name: torch.ones(1) for name in names}, as_zip=False)
    assert [ref.name for ref in read(path).tensors] == names


@ZIP_OR_LEGACY
@pytest.mark.parametrize("seed", range(3))
def test_truncated_anywhere_is_one_corrupt_error(tmp_path, as_zip, seed):
    state = {f"w{i}": torch.arange(50.0) for i in range(5)} | {"t": torch.ones(4, 4).t(), "p": torch.ones(3)}
    whole = save(tmp_path, state, as_zip).read_bytes()
    path = tmp_path / "cut.bin"
    # The shortest cuts leave no magic number to recognise.
    for length in [0, 1, 3, 20, *range(24 + seed, len(whole), 31), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises((CorruptError, UnsupportedError)) as caught:
            read(path)
        assert "cut.bin" in str(caught.value), length
        assert caught.value.cure, length
        if length > 20:
            assert isinstance(caught.value, CorruptError), (length, caught.value)


@ZIP_OR_LEGACY
def test_names_of_formats(tmp_path, as_zip):
    expected = "torch zip" if as_zip else "torch legacy"
    assert format_of(local(save(tmp_path, {}, as_zip))).name == expected


W = torch.arange(4, dtype=torch.float32).reshape(2, 2)
KEYS = {
    "a tuple": (1, 2), "an empty tuple": (), "nested tuples": ((1, "a"), (2.5, None)), "a dtype": torch.float16,
    "torch.Size": torch.Size([1]), "bytes": b"x", "a device": torch.device("cpu"), "a layout": torch.strided,
    "a tuple of dtypes": (torch.float16, torch.int8), "two devices": torch.device("meta"),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_keys_that_are_no_names(tmp_path, key, legacy):
    """torch.load reads them; in the state dict itself load_state_dict fails on them, beside it they do no harm."""
    value = {KEYS[key]: 3} | ({torch.device("cpu"): 4} if key == "two devices" else {})
    path = tmp_path / "model.bin"

    def opened(content):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        torch.load(path, weights_only=True)
        return open_checkpoint(path)

    for beside in (value, {"optimizer": {"state": value}}):
        checkpoint = opened({"state_dict": {"w": W}, **beside})
        assert list(checkpoint.tensors) == ["w"]
        assert torch.equal(checkpoint.read("w"), W)
        assert not checkpoint.objects
    with pytest.raises(UnsupportedError, match="as a key"):
        opened({"w": W, **value})
    with pytest.raises((AttributeError, TypeError)):
        torch.nn.Module().load_state_dict(torch.load(path, weights_only=True))
    plain = not any(word in key for word in ("dtype", "device", "layout"))
    if plain:
        assert opened({"w": W, "counts": value, "more": [Counter(value)]}).objects == {
            "counts": value,
            "more": [Counter(value)],
        }
    else:
        with pytest.raises(UnsupportedError, match="'counts' holds"):
            opened({"w": W, "counts": value})


def test_many_keys_whose_hashes_clash_are_refused_in_time(tmp_path):
    torch.save({"w": W, "many": {(i, 0): i for i in range(20_000)}}, tmp_path / "model.bin")
    with pytest.raises(UnsupportedError, match="more, or more deeply nested"):
        open_checkpoint(tmp_path / "model.bin")
    torch.save({"state_dict": {"w": W}, "many": {(i, 0): i for i in range(20_000)}}, tmp_path / "model.bin")
    assert list(open_checkpoint(tmp_path / "model.bin").tensors) == ["w"]
