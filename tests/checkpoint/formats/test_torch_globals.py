"""The names that a pickle may use against torch's own weights-only list, and what stands for their results."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import _weights_only_unpickler

from shardload.checkpoint.formats.torch_globals import (
    ALLOWED,
    Global,
    PickledDict,
    PickledTensor,
    Storage,
    Unreadable,
    check_key,
    lookup,
)
from shardload.errors import UnsafeError, UnsupportedError
from shardload.tensor_ref import TORCH_NAMES


def make(name, *args):
    module, _, leaf = name.rpartition(".")
    return lookup(module, leaf, "model.bin").make(*args)


def test_torch_allows_everything_that_can_be_called_here():
    torchs = set(_weights_only_unpickler._get_allowed_globals())
    # torch reads the first by name, outside its table, and has Python 2's name of the builtins. torch 2.15 leaves
    # out the second, which earlier releases write: here it is a name for what can't be read.
    torchs |= {"torch.nn.parameter.Parameter", "torch._utils._rebuild_nested_tensor"}
    torchs |= {name.replace("__builtin__", "builtins") for name in torchs}
    assert {name for name, found in ALLOWED.items() if found.make} <= torchs
    assert len(ALLOWED) < len(torchs)


def test_storage_types_have_the_dtypes_that_torch_gives_them():
    for dtype, name in torch.storage._dtype_to_storage_type_map().items():
        found = ALLOWED[f"torch.{name}"]
        assert found.is_storage
        assert ALLOWED[f"torch.cuda.{name}"].code == found.code
        if found.code is None:
            assert dtype.is_floating_point is False
            assert "qint" in str(dtype) or "quint" in str(dtype)
        else:
            assert getattr(torch, TORCH_NAMES[found.code]) is dtype


def test_dtypes_have_their_codes():
    for code, name in TORCH_NAMES.items():
        assert ALLOWED[f"torch.{name}"].code == code
        assert ALLOWED[f"torch.{name}"].make is None


def test_python_2_called_builtins_by_another_name():
    assert lookup("__builtin__", "set", "model.bin") is lookup("builtins", "set", "model.bin")


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.load", "collections.namedtuple", "torch."]
)
def test_any_other_name_is_unsafe(name):
    module, _, leaf = name.rpartition(".")
    with pytest.raises(UnsafeError, match="nothing was run") as caught:
        lookup(module, leaf, "model.bin: 'w'")
    assert caught.value.where == "model.bin: 'w'"


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("numpy.core.multiarray", "NumPy"),
        ("torch.distributed.tensor", "DTensor"),
        ("torchao.dtypes", "torchao"),
    ],
)
def test_known_harmless_kinds_are_named(module, kind):
    with pytest.raises(UnsupportedError, match=kind) as caught:
        lookup(module, "anything", "model.bin")
    assert module in caught.value.where


def test_plain_results_are_those_of_the_real_names():
    assert make("collections.OrderedDict", [["a", 1]]) == {"a": 1}
    assert type(make("collections.OrderedDict")) is PickledDict
    assert make("collections.Counter", {"a": 2}) == Counter("aa")
    assert make("builtins.set", [1, "a"]) == {1, "a"}
    assert make("_codecs.encode", "\xff\x00", "latin1") == b"\xff\x00"
    assert make("builtins.bytearray", b"ab") == bytearray(b"ab")
    assert make("builtins.complex", 1.0, -2.0) == 1 - 2j
    assert make("torch.Size", [2, 3]) == (2, 3) == torch.Size([2, 3])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("builtins.bytearray", (10**12,)),
        ("_codecs.encode", ("a", "idna")),
        ("torch.Size", ([2.0],)),
        ("builtins.set", ("abc",)),
        ("collections.OrderedDict", ({"a": 1},)),
        ("collections.Counter", ("aab",)),
        ("builtins.complex", (1,)),
        ("torch._utils._rebuild_tensor", ("0", 0, (1,), (1,))),
        ("torch._utils._rebuild_tensor", (Storage("0", "F32", "torch.FloatStorage", 1), 0, (1, 1), (1,))),
    ],
)
def test_other_arguments_are_refused(name, args):
    with pytest.raises(TypeError):
        make(name, *args)


@pytest.mark.parametrize("key", [(), ((),), 2**60, -(2**60), PickledDict()], ids=str)
def test_a_key_whose_hash_costs_or_clashes_is_refused(key):
    with pytest.raises(ValueError, match="can't be a dict key"):
        check_key(key)


def test_scalars_are_keys():
    for key in ("a", 7, 2.5, True, None, b"a", 2**60 - 1):
        check_key(key)


FLOATS = Storage("0", "F32", "torch.FloatStorage", 6)


def test_a_tensor_is_what_the_pickle_states():
    made = make("torch._utils._rebuild_tensor_v2", FLOATS, 1, (2, 2), (2, 1), False, PickledDict())
    assert type(made) is PickledTensor
    assert (made.storage, made.offset, made.shape, made.strides, made.code) == (
        FLOATS,
        1,
        (2, 2),
        (2, 1),
        "F32",
    )


def test_version_3_has_a_dtype_of_its_own():
    half = lookup("torch", "float16", "model.bin")
    made = make("torch._utils._rebuild_tensor_v3", FLOATS, 0, (2,), (1,), False, PickledDict(), half)
    assert made.code == "F16"
    for other in (FLOATS, lookup("torch", "FloatStorage", "m"), lookup("torch", "Size", "m"), "float16"):
        with pytest.raises(TypeError, match="dtype"):
            make("torch._utils._rebuild_tensor_v3", FLOATS, 0, (2,), (1,), False, PickledDict(), other)


def test_a_conjugate_bit_and_a_quantized_storage_have_no_reference():
    conj = make(
        "torch._utils._rebuild_tensor_v2", FLOATS, 0, (1,), (1,), False, None, {"conj": True, "neg": False}
    )
    quantized = make(
        "torch._utils._rebuild_tensor", Storage("0", None, "torch.QInt8Storage", 1), 0, (1,), (1,)
    )
    assert type(conj) is type(quantized) is Unreadable
    assert conj.kind == "a tensor with its conj bit set"
    assert quantized.kind == "a tensor of torch.QInt8Storage"


@pytest.mark.parametrize("code", ["U8", "I64", "BOOL"])
def test_only_floats_have_gradients(code):
    stored = Storage("0", code, "torch.ByteStorage", 1)
    with pytest.raises(ValueError, match="can't have a gradient"):
        make("torch._utils._rebuild_tensor_v2", stored, 0, (1,), (1,), True, None)
    assert make("torch._utils._rebuild_tensor_v2", stored, 0, (1,), (1,), False, None).code == code


def test_a_tensor_of_a_subclass_is_not_read_as_a_plain_one():
    rebuild, plain = lookup("torch._utils", "_rebuild_tensor_v2", "m"), lookup("torch", "Tensor", "m")
    args = (FLOATS, 0, (6,), (1,), False, None)
    assert make("torch._tensor._rebuild_from_type_v2", rebuild, plain, args, {}).shape == (6,)
    other = make("torch._tensor._rebuild_from_type_v2", rebuild, Global("some.Subclass"), args, {})
    assert type(other) is Unreadable
