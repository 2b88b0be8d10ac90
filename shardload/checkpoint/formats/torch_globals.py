"""The names that a checkpoint's pickle may use, and the inert values that stand for what they would make.

Nothing is imported and no name of a file is looked up anywhere but in the table below. It holds less than torch's
own `weights_only` list: what really occurs in state dicts.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import RESAVE
from shardload.checkpoint.formats.aside import KINDS, Aside
from shardload.checkpoint.formats.text import quote
from shardload.errors import UnsafeError, UnsupportedError
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable


class PickledDict(dict[Any, Any]):
    """An OrderedDict of the file; `metadata` is the `_metadata` that a state dict carries."""

    __slots__ = ("metadata",)

    def __init__(self) -> None:
        self.metadata: dict[Any, Any] | None = None


class Storage:
    """A storage of the file: its key, the code of its dtype (or None) and its number of elements.

    `offset` counts elements from the start of the stored block `key`: files from before torch 0.4 have such views.
    """

    __slots__ = ("code", "key", "kind", "numel", "offset")

    def __init__(self, key: str, code: str | None, kind: str, numel: int, offset: int = 0) -> None:
        self.key = key
        self.code = code
        self.kind = kind
        self.numel = numel
        self.offset = offset


class PickledTensor:
    """A tensor as the pickle states it; only the types are checked so far."""

    __slots__ = ("code", "offset", "shape", "storage", "strides")

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], code: str
    ) -> None:
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.strides = strides
        self.code = code


class Unreadable:
    """A harmless object that no TensorRef describes, such as `kind` "a sparse tensor"."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Global:
    """An allowed name. `make` returns the result of a call; `code` is the dtype code of a dtype or storage type.

    `is_aside`: whatever it makes lies beside the weights.
    """

    __slots__ = ("code", "is_aside", "is_storage", "make", "name")

    def __init__(
        self,
        name: str,
        make: Callable[..., Any] | None = None,
        *,
        code: str | None = None,
        is_storage: bool = False,
        is_aside: bool = False,
    ) -> None:
        self.name = name
        self.make = make
        self.code = code
        self.is_storage = is_storage
        self.is_aside = is_aside


class PickledKey:
    """A dict's key that is no scalar: a tuple, a dtype. It stands for itself alone, so hashing it costs nothing."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def kind(self) -> str:
        """What it is, in words."""
        named = getattr(self.value, "kind", None) or getattr(self.value, "name", None)
        return str(named or f"a {type(self.value).__name__}")

    def __repr__(self) -> str:
        flat = type(self.value) is tuple and all(type(part) in _SCALARS for part in self.value)
        return repr(self.value) if flat else self.kind


_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
# Two ints that differ by a multiple of 2^61-1 have equal hashes: 100,000 of them in one dict would take minutes.
_MAX_INT_KEY = 2**60


def check_key(key: Any) -> None:
    """Raise ValueError for a dict key or set element that is no plain scalar: hashing it may recurse for ever."""
    if type(key) not in _SCALARS or (type(key) is int and not -_MAX_INT_KEY < key < _MAX_INT_KEY):
        raise ValueError(f"a {type(key).__name__} can't be a dict key or set element")


def as_key(key: Any) -> Any:
    """Return what stands for a key in a dict. Raises ValueError for what no dict takes, and for a huge int."""
    if type(key) in {tuple, Global, Unreadable, Aside}:
        return PickledKey(key)
    check_key(key)
    return key


def _ordered_dict(pairs: Any = ()) -> PickledDict:
    made = PickledDict()
    if type(pairs) not in {list, tuple}:
        raise TypeError("OrderedDict takes pairs")
    for key, value in pairs:
        made[as_key(key)] = value
    return made


def _counter(counts: Any = None) -> Counter[Any]:
    if counts is not None and type(counts) is not dict:
        raise TypeError("Counter takes a dict")
    return Counter(counts or {})


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in {list, tuple}:
        raise TypeError("set takes a list")
    for item in items:
        check_key(item)
    return set(items)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TypeError("encode takes a text and 'latin1'")
    return text.encode("latin1")


def _bytearray(content: Any = b"", encoding: Any = None) -> bytearray:
    if type(content) is str and encoding == "latin-1":
        return bytearray(content, "latin-1")
    # An int would be a size: 5 bytes of pickle could ask for terabytes.
    if type(content) is bytes and encoding is None:
        return bytearray(content)
    raise TypeError("bytearray takes bytes")


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("complex takes floats")
    return complex(real, imaginary)


def _size(dims: Any = ()) -> tuple[int, ...]:
    if type(dims) not in {list, tuple} or not all(type(dim) is int for dim in dims):
        raise TypeError("torch.Size takes ints")
    return tuple(dims)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor | Unreadable:
    if type(storage) is not Storage or type(offset) is not int or type(shape) is not tuple:
        raise TypeError("a tensor takes a storage, an offset and a shape")
    if type(strides) is not tuple or len(strides) != len(shape):
        raise TypeError("a tensor takes as many strides as dimensions")
    if storage.code is None:
        return Unreadable(f"a tensor of {storage.kind}")
    return PickledTensor(storage, offset, shape, strides, storage.code)


def _tensor_v2(  # the argument list is torch's
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> PickledTensor | Unreadable:
    if type(grad) is not bool or not (hooks is None or type(hooks) is PickledDict or type(hooks) is dict):
        raise TypeError("a tensor takes whether it has a gradient, and its hooks")
    bits = _set_bits(metadata)
    if bits:
        return Unreadable(f"a tensor with its {bits} bit set")
    return _with_gradient(_tensor(storage, offset, shape, strides), grad)


def _tensor_v3(  # the argument list is torch's
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> PickledTensor | Unreadable:
    if type(dtype) is not Global or not dtype.name.startswith("torch.") or dtype.make or dtype.is_storage:
        raise TypeError("the dtype is not one")
    if type(grad) is not bool:
        raise TypeError("a tensor takes whether it has a gradient, and its hooks")
    made = _tensor_v2(storage, offset, shape, strides, False, hooks, metadata)
    if type(made) is PickledTensor:
        if dtype.code is None:
            return Unreadable(f"a tensor of {dtype.name}")
        made.code = dtype.code
    return _with_gradient(made, grad)


def _with_gradient(made: PickledTensor | Unreadable, grad: bool) -> PickledTensor | Unreadable:
    # The codes of integers are U8, I16 and so on.
    if grad and type(made) is PickledTensor and (made.code[0] in "UI" or made.code == "BOOL"):
        raise ValueError(f"a tensor of {made.code} can't have a gradient")
    return made


def _set_bits(metadata: Any) -> str:
    if metadata is None:
        return ""
    if type(metadata) is not dict or not all(type(key) is str for key in metadata):
        raise TypeError("a tensor's metadata is a dict")
    return " and ".join(sorted(key for key, value in metadata.items() if value))


def _parameter(data: Any, grad: Any = True, _hooks: Any = None, _state: Any = None) -> Any:
    if type(grad) is not bool or (type(data) is not PickledTensor and type(data) is not Unreadable):
        raise TypeError("a parameter holds a tensor, and whether it has a gradient")
    return _with_gradient(data, grad)


def _from_type(func: Any, kind: Any, args: Any, _state: Any) -> Any:
    """Return the stand-in for a tensor with Python attributes, or of a subclass."""
    if type(func) is not Global or type(kind) is not Global or type(args) is not tuple:
        raise TypeError("a tensor's type is rebuilt from a function, a type and arguments")
    if kind.name != "torch.Tensor" or func.make not in {_tensor, _tensor_v2, _tensor_v3}:
        return Unreadable(f"a tensor of the type {kind.name}")
    return func.make(*args)


def _unreadable(kind: str) -> Callable[..., Unreadable]:
    made = Unreadable(kind)
    return lambda *_: made


def _allowed() -> dict[str, Global]:
    rebuild = "torch._utils._rebuild_"
    makers: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
        "builtins.set": _set,
        "builtins.bytearray": _bytearray,
        "builtins.complex": _complex,
        "_codecs.encode": _encode,
        "torch.Size": _size,
        "torch.device": _unreadable("a torch.device"),
        "torch.serialization._get_layout": _unreadable("a torch.layout"),
        "torch.nn.parameter.Parameter": _parameter,
        "torch._tensor._rebuild_from_type_v2": _from_type,
        f"{rebuild}tensor": _tensor,
        f"{rebuild}tensor_v2": _tensor_v2,
        f"{rebuild}tensor_v3": _tensor_v3,
        f"{rebuild}parameter": _parameter,
        f"{rebuild}parameter_with_state": _parameter,
        f"{rebuild}sparse_tensor": _unreadable("a sparse tensor"),
        f"{rebuild}qtensor": _unreadable("a quantized tensor"),
        f"{rebuild}nested_tensor": _unreadable("a nested tensor"),
        f"{rebuild}meta_tensor_no_storage": _unreadable("a meta tensor, which has no data"),
        f"{rebuild}wrapper_subclass": _unreadable("a tensor subclass"),
        f"{rebuild}device_tensor_from_cpu_tensor": _unreadable("a tensor of another device"),
    }
    table = {name: Global(name, make) for name, make in makers.items()}
    for code, name in TORCH_NAMES.items():
        table[f"torch.{name}"] = Global(f"torch.{name}", code=code)
    for name in _NAMES_ONLY:
        table[f"torch.{name}"] = Global(f"torch.{name}")
    for name, stored in STORAGES.items():
        # Storages of other devices differ only in the device to restore them to, which the file does not decide here.
        for module in ("torch", "torch.cuda"):
            full = f"{module}.{name}Storage"
            table[full] = Global(full, code=stored, is_storage=True)
    untyped = "torch.storage.UntypedStorage"
    table[untyped] = Global(untyped, code="U8", is_storage=True)
    return table


STORAGES: dict[str, str | None] = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32",
    "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "ComplexDouble": "C128",
    "QInt8": None, "QUInt8": None, "QInt32": None, "QUInt4x2": None, "QUInt2x4": None,
}  # fmt: skip
"""The code of each kind of storage, by its name without "Storage"; None where no tensor of it is read."""

_NAMES_ONLY = (
    "Tensor", "complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)  # fmt: skip

ALLOWED = _allowed()

_OF_RANKS = "torch.distributed."
_PLAIN = "re-save plain tensors: torch.save({name: tensor for name, tensor in model.state_dict().items()})"
_TOGETHER = (
    "save it on all ranks by torch.distributed.checkpoint.save, which is read, or save full_tensor() of each"
)

# Not allowed, but harmless: the error names the kind.
_KNOWN = (
    ("numpy.", "a NumPy array or number"),
    (_OF_RANKS, "a distributed tensor (DTensor, ShardedTensor)"),
    ("torch.nested.", "a nested tensor"),
    ("torchao.", "a tensor subclass of torchao"),
    ("torch.fx.", "a traced module, not a state dict"),
    ("torch.nn.modules.", "a whole module, not a state dict"),
    ("torch._utils._rebuild_device_tensor_from_numpy", "a tensor that was saved as a NumPy array"),
)


def lookup(module: str, name: str, where: str) -> Global:
    """Return the allowed global of that name, or an inert one for what lies beside weights.

    Raises UnsafeError, or UnsupportedError for known harmless kinds.
    """
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    found = ALLOWED.get(full)
    if found is not None:
        return found
    if full in KINDS:
        beside = Aside(KINDS[full])
        return Global(full, lambda *_: beside, is_aside=True)
    for prefix, kind in _KNOWN:
        if full.startswith(prefix):
            raise UnsupportedError(
                f"the checkpoint holds {kind}",
                where=f"{where}: its pickle names {quote(full)}",
                cure=_TOGETHER if prefix == _OF_RANKS else _PLAIN,
                code="E-FORMAT",
            )
    raise UnsafeError(
        f"the checkpoint's pickle asks for {quote(full)}, which no weights need; nothing was run",
        where=where,
        cure=f"do not load it elsewhere either: it may run code. If you trust its author, {RESAVE}",
    )
