"""The state dict is found in the object that a pickle holds."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from shardload.checkpoint.formats.state_dict import Block, header_of
from shardload.checkpoint.formats.torch_globals import PickledTensor, Storage
from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import Span

from .files import load_span, read

W = torch.arange(6.0).view(2, 3)


def saved(tmp_path, state, as_zip=True):
    path = tmp_path / "model.ckpt"
    torch.save(state, path, _use_new_zipfile_serialization=as_zip)
    return path


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("keys", [
    (), ("state_dict",), ("model_state_dict",), ("model",), ("module",),
    ("state_dict", "module"), ("module", "model", "state_dict"),
])  # fmt: skip
def test_envelopes(tmp_path, keys, as_zip):
    state = OrderedDict(w=W, v=W[0])
    state._metadata = OrderedDict({"": {"version": 1}})
    for key in reversed(keys):
        state = {
            "epoch": 3,
            key: state,
            "optimizer": {"state": {0: {"exp_avg": W.clone()}}, "param_groups": []},
        }
    header = read(saved(tmp_path, state, as_zip))
    assert header.envelope == keys
    assert [ref.name for ref in header.tensors] == ["w", "v"]
    assert header.versions == {"": {"version": 1}}
    assert header.objects == {}
    expected = [
        ".".join([*keys[:depth], name]) for depth in range(len(keys)) for name in ("epoch", "optimizer")
    ]
    assert list(header.discarded) == expected
    assert torch.equal(load_span(tmp_path / "model.ckpt", header.tensors[0]), W)


def test_a_state_dict_with_modules_called_like_envelopes(tmp_path):
    state = {"model.w": W, "module.w": W, "state_dict": torch.ones(1), "model": torch.ones(2)}
    header = read(saved(tmp_path, state))
    assert header.envelope == ()
    assert len(header.tensors) == 4


def test_lightning(tmp_path):
    state = {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.0", "state_dict": {"w": W}, "loops": {},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1, "size": torch.Size([1])},
    }  # fmt: skip
    header = read(saved(tmp_path, state))
    assert header.envelope == ("state_dict",)
    assert "optimizer_states" in header.discarded


def test_an_envelope_of_an_empty_model(tmp_path):
    header = read(saved(tmp_path, {"state_dict": {}, "epoch": 1}))
    assert header.tensors == ()


def test_a_few_tensors_beside_the_envelope_are_left_aside(tmp_path):
    state = {"step": torch.tensor(1), "model": {f"w{i}": W for i in range(5)}}
    header = read(saved(tmp_path, state))
    assert header.envelope == ("model",)
    assert header.discarded == ("step",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (W, "a single tensor"),
        ([W, W], "a list, not a state dict"),
        ((W,), "a tuple, not a state dict"),
        (7, "a int, not a state dict"),
        ({"state": {0: {"exp_avg": W}}, "param_groups": [{"lr": 0.1}]}, "the state of an optimizer"),
        (
            {"encoder": {"w": W}, "decoder": {"w": W}},
            r"several state dicts: 'encoder' \(1 tensor\), 'decoder' \(1 tensor\)",
        ),
        ({"model": {"w": W}, "state_dict": {"w": W}}, r"several state dicts: 'state_dict' .*, 'model' "),
        ({"w": W, "_extra_state": {"model": W}}, "'_extra_state' holds a tensor in a nested entry"),
        ({"w": W, "v": {"w": W}, "v.w": W}, "one name twice"),
        ({0: W}, "a state dict with a int as a key"),
        ({"w": W, "list": [[W]]}, "'list' holds a tensor"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, state, message):
    with pytest.raises(UnsupportedError, match=message) as caught:
        read(saved(tmp_path, state))
    assert "model.ckpt" in str(caught.value)
    assert caught.value.cure


def test_dicts_inside_a_state_dict_are_names_with_dots(tmp_path):
    nested = {"language_model": {"embedding": {"word": {"weight": W}}, "encoder": {"h.0.w": W, "n": 1}}}
    header = read(saved(tmp_path, {"model": nested, "iteration": 7}))
    assert header.envelope == ("model",)
    assert [ref.name for ref in header.tensors] == [
        "language_model.embedding.word.weight",
        "language_model.encoder.h.0.w",
    ]
    assert header.objects == {"language_model.encoder.n": 1}


def test_objects_are_plain_data_of_their_own(tmp_path):
    shared = [1, 2]
    header = read(
        saved(tmp_path, {"w": W, "a": shared, "b": {"again": shared}, "c": OrderedDict(x=OrderedDict(y=1))})
    )
    assert header.objects == {"a": [1, 2], "b": {"again": [1, 2]}, "c": {"x": {"y": 1}}}
    assert header.objects["a"] is not header.objects["b"]["again"]
    assert type(header.objects["c"]["x"]) is dict


def test_a_tensor_is_a_span_of_its_storage():
    stored = Storage("7", "F32", "torch.FloatStorage", 100, offset=10)
    state = {"w": PickledTensor(stored, 5, (2, 3), (3, 1), "F32"), "n": 3}
    header = header_of(state, "a.bin", lambda storage: Block(1000, 4 * storage.numel))
    assert header.tensors[0].span == Span(1000 + 4 * 5, 1000 + 4 * 11)
    assert header.objects == {"n": 3}
    turned = {"w": PickledTensor(stored, 0, (3, 2), (1, 3), "F32")}
    (ref,) = header_of(turned, "a.bin", lambda storage: Block(0, 400)).tensors
    assert ref.strides == (1, 3)
    with pytest.raises(CorruptError, match="does not lie inside its storage"):
        header_of(
            {"w": PickledTensor(stored, 98, (2, 3), (3, 1), "F32")}, "a.bin", lambda storage: Block(0, 400)
        )
