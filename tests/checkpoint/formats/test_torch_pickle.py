"""TorchPickle: the stand-ins say of every tensor what torch makes of the same pickle."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict

import pytest
import torch

from shardload import open_checkpoint
from shardload.checkpoint.formats.pickle_machine import EndOfDataError
from shardload.checkpoint.formats.torch_globals import PickledDict, PickledTensor
from shardload.checkpoint.formats.torch_pickle import TorchPickle
from shardload.errors import CorruptError, NotFoundError, UnsafeError, UnsupportedError, keywords_of
from shardload.tensor_ref import TORCH_NAMES

from .files import read_bytes, torch_zip
from .opcodes import FLOAT, ORDERED, REBUILD, pickled, text

PROTO = b"\x80\x02"


def pickle_of(tmp_path, state) -> bytes:
    path = tmp_path / "model.bin"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def load(body: bytes):
    return TorchPickle(PROTO + body, "model.bin").load()


def test_it_describes_what_torch_makes(tmp_path):
    base = torch.arange(24, dtype=torch.float16)
    state = {
        "whole": base,
        "turned": base.view(4, 6).t(),
        "part": base[5:9],
        "long": torch.tensor(3),
        "bfloat": torch.ones(2, 0, 3, dtype=torch.bfloat16),
        "new": torch.ones(3).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    data = pickle_of(tmp_path, state)
    reader = TorchPickle(data, "model.bin")
    made = reader.load()
    assert reader.position == len(data)
    assert list(made) == list(state)
    for name, tensor in state.items():
        assert type(made[name]) is PickledTensor
        assert made[name].shape == tuple(tensor.shape)
        assert made[name].strides == tensor.stride()
        assert made[name].offset == tensor.storage_offset()
        assert getattr(torch, TORCH_NAMES[made[name].code]) is tensor.dtype
    assert made["whole"].storage is made["turned"].storage is made["part"].storage
    assert len(reader.storages()) == len(state) - 2
    assert reader.storages()[made["whole"].storage.key].numel == 24


def test_the_metadata_of_a_state_dict_is_kept(tmp_path):
    made = TorchPickle(pickle_of(tmp_path, torch.nn.BatchNorm1d(2).state_dict()), "model.bin").load()
    assert type(made) is PickledDict
    assert made.metadata == OrderedDict({"": {"version": 2}})


def test_every_cut_is_the_end_of_the_data(tmp_path):
    data = pickle_of(tmp_path, {"w": torch.ones(2)})
    for length in range(len(data)):
        with pytest.raises(EndOfDataError):
            TorchPickle(data[:length], "model.bin").load()


def test_an_error_names_the_key_that_was_read_last():
    with pytest.raises(UnsafeError) as caught:
        load(b"}" + text("layers.3.weight") + b"cos\nsystem\n.")
    assert caught.value.where == "model.bin: 'layers.3.weight'"


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        ("BUILD", ORDERED + b"}b."),
        ("BUILD", b"}}b."),
        ("NEWOBJ", ORDERED + b")\x81."),
        ("REDUCE", FLOAT + b")R."),
        ("STACK_GLOBAL", text("os") + text("system") + b"\x93."),
        ("INST", b"(ios\nsystem\n."),
        ("EXT1", b"\x82\x01."),
    ],
)
def test_what_makes_or_changes_objects_is_unsafe(opcode, body):
    with pytest.raises(UnsafeError, match=f"uses {opcode} on"):
        load(body)


def test_a_whole_model_is_no_state_dict():
    with pytest.raises(UnsupportedError, match="a whole pickled model"):
        load(b"(" + text("module") + b"NNNtQ.")


def stored(kind: bytes, numel: int, *more: bytes) -> bytes:
    return (
        b"("
        + text("storage")
        + kind
        + text("0")
        + text("cpu")
        + b"K"
        + bytes([numel])
        + b"".join(more)
        + b"tQ"
    )


def test_one_key_is_one_storage():
    longs = b"ctorch\nLongStorage\n"
    with pytest.raises(CorruptError, match="'0' is 6 x torch.FloatStorage and 6 x torch.LongStorage"):
        load(stored(FLOAT, 6) + stored(longs, 6) + b"\x86.")
    with pytest.raises(CorruptError, match="'0' is 6 x torch.FloatStorage and 5 x"):
        load(stored(FLOAT, 6) + stored(FLOAT, 5) + b"\x86.")
    first, second = load(stored(FLOAT, 6) + stored(FLOAT, 6) + b"\x86.")
    assert first is second


def test_view_metadata_belongs_to_files_before_torch_1_6():
    body = PROTO + stored(FLOAT, 6, b"(" + text("9") + b"K\x02K\x03t") + b"."
    with pytest.raises(CorruptError, match="unknown persistent id"):
        TorchPickle(body, "model.bin").load()
    view = TorchPickle(body, "model.bin", with_views=True).load()
    assert (view.key, view.offset, view.numel) == ("0", 2, 3)


def test_a_list_is_charged_each_time_that_it_is_copied(monkeypatch):
    monkeypatch.setattr("shardload.checkpoint.formats.pickle_machine.MAX_OBJECT_BYTES", 3_000_000)
    items = b"](" + b"K\x01" * 1000 + b"eq\x00" + b"c__builtin__\nset\nq\x01"
    assert load(items + b"h\x01h\x00\x85R.") == {1}
    with pytest.raises(UnsupportedError, match="MB of objects"):
        load(items + b"h\x01h\x00\x85R" * 30 + b".")


def test_one_storage_with_two_types(tmp_path):
    first, second = pickled(), pickled(kind="Int")
    both = (
        b"\x80\x02}("
        + first[first.index(text("w")) : -2]
        + text("v")
        + second[second.index(REBUILD) : -2]
        + b"u."
    )
    with pytest.raises(CorruptError, match="storage '0' is 6 x torch.FloatStorage and 6 x torch.IntStorage"):
        read_bytes(tmp_path, torch_zip(both, {"0": bytes(24)}))


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)


class Runs(dict):
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_named_as_what_it_is(tmp_path, legacy):
    zipped = {"_use_new_zipfile_serialization": not legacy}
    torch.save({"model": Whole(), "epoch": 1}, tmp_path / "x.pt", **zipped)
    with pytest.raises(UnsafeError, match="holds a whole module, pickled by the name of its class") as caught:
        open_checkpoint(tmp_path / "x.pt")
    assert "test_torch_pickle.Whole" in caught.value.what
    assert "torch.save(model.state_dict(), file)" in caught.value.cure
    # What looks like a module, and would run a function of Python, is called unsafe as ever.
    words = dict.fromkeys(("_parameters", "_buffers", "_modules", "training"))
    torch.save({**words, "model": Runs()}, tmp_path / "x.pt", **zipped)
    with pytest.raises(UnsafeError, match="which no weights need"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("module", [Whole, lambda: torch.nn.Linear(2, 2)], ids=["own", "torch's"])
def test_a_state_dict_beside_a_whole_module_is_offered_and_read(tmp_path, legacy, module):
    ema = {"fc.weight": torch.arange(4.0).reshape(2, 2), "fc.bias": torch.ones(2)}
    saved = {"model": module(), "ema": {"shadow": ema}, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises((UnsafeError, UnsupportedError), match="a whole module") as caught:
        open_checkpoint(tmp_path / "x.pt")
    first, again = caught.value.cure.parts
    assert keywords_of(first) == {"state_dict": "ema.shadow"}
    assert "model.state_dict()" in again
    found = dict(open_checkpoint(tmp_path / "x.pt", **keywords_of(first)).items())
    assert found.keys() == ema.keys()
    assert all(torch.equal(found[key], value) for key, value in ema.items())
    with pytest.raises(NotFoundError, match="no state dict 'model'"):
        open_checkpoint(tmp_path / "x.pt", state_dict="model")


def test_what_would_run_python_beside_a_whole_module_is_unsafe_whatever_is_named(tmp_path):
    state = {"fc.weight": torch.ones(2, 2)}
    torch.save({"ema": state, "model": Whole(), "x": Runs()}, tmp_path / "x.pt")
    for named in (None, "ema"):
        with pytest.raises(UnsafeError) as caught:
            open_checkpoint(tmp_path / "x.pt", state_dict=named)
        assert "state_dict" not in keywords_of(caught.value.cure)
