"""The pickle in the `.metadata` of a distributed checkpoint, read without importing or running anything that it names.

It is of a newer protocol than what torch.save writes, and names the classes of torch.distributed.checkpoint, which
become Records here.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from shardload._system.file_kind import RESAVE
from shardload.checkpoint.formats.aside import Aside
from shardload.checkpoint.formats.pickle_machine import add_opcodes
from shardload.checkpoint.formats.torch_globals import Global, PickledKey
from shardload.checkpoint.formats.torch_pickle import TorchPickle
from shardload.errors import UnsupportedError

_ULONG = Struct("<Q").unpack_from
_UINT = Struct("<I").unpack_from
_OLDEST, _NEWEST = 2, 5


class Record:
    """An object of the file, of the class that `kind` names: nothing of that class was run. `state` is its state."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None

    def get(self, name: str) -> Any:
        """Return one attribute of the object, None where it has none of that name."""
        return self.state.get(name) if type(self.state) is dict else None


class DcpPickle(TorchPickle):
    """A pickle of protocol 2 to 5; objects of torch.distributed become Records, sets are left aside."""

    __slots__ = ()

    def _proto(self) -> None:
        version = self._take(1)[0]
        if not _OLDEST <= version <= _NEWEST:
            raise UnsupportedError(
                f"the checkpoint's pickle is of protocol {version}, and {_NEWEST} is the newest that is read",
                where=self.where,
                cure=RESAVE,
                code="E-FORMAT",
            )

    def _frame(self) -> None:
        self._take(8)  # a hint to readers of streams

    def _short_unicode(self) -> None:
        self._push_text(self._take(self._take(1)[0]))

    def _long_unicode(self) -> None:
        length = _ULONG(self._data, self.position)[0]
        self.position += 8
        self._check(length)
        self._charge(5 * length)
        self._stack.append(str(self._take(length), "utf-8"))

    def _short_bytes(self) -> None:
        self._stack.append(self._take(self._take(1)[0]))

    def _bytes(self) -> None:
        length = _UINT(self._data, self.position)[0]
        self.position += 4
        self._charge(length)
        self._stack.append(self._take(length))

    def _long_bytes(self) -> None:
        length = _ULONG(self._data, self.position)[0]
        self.position += 8
        self._check(length)
        self._charge(length)
        self._stack.append(self._take(length))

    def _memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def _empty_set(self) -> None:
        self._stack.append(Aside("a set"))

    def _add_items(self) -> None:
        self._pop_mark()
        if type(self._stack[-1]) is not Aside:
            raise TypeError("ADDITEMS to what is no set")

    def _frozen_set(self) -> None:
        self._pop_mark()
        self._stack.append(Aside("a set"))

    def _stack_global(self) -> None:
        name = self._stack.pop()
        module = self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a global without a name")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if full.startswith(_RECORDS):
            return Global(full, lambda *_: Record(full))
        return super()._named(module, name)

    def _newobj(self) -> None:
        made = self._stack[-2] if len(self._stack) > 1 else None
        if type(made) is not Global or not made.name.startswith(_RECORDS):
            super()._newobj()
            return
        self._stack.pop()
        self._stack[-1] = Record(made.name)

    def _build(self) -> None:
        if len(self._stack) > 1 and type(self._stack[-2]) is Record:
            state = self._stack.pop()
            self._stack[-1].state = state
            return
        super()._build()

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        if not any(type(key) is Record for key in keys):
            super()._set(keys, values)
            return
        target = self._stack[-1]
        if type(target) is not dict or not all(type(key) is Record for key in keys):
            raise TypeError("a dict with objects and other things as keys")
        self._charge(200 * len(keys))
        target.update(zip(map(PickledKey, keys), values, strict=True))


_RECORDS = "torch.distributed."


add_opcodes(
    DcpPickle,
    (
        (b"\x80", DcpPickle._proto, 0),
        (b"\x95", DcpPickle._frame, 0),
        (b"\x8c", DcpPickle._short_unicode, 64),
        (b"\x8d", DcpPickle._long_unicode, 64),
        (b"C", DcpPickle._short_bytes, 300),
        (b"B", DcpPickle._bytes, 64),
        (b"\x8e", DcpPickle._long_bytes, 64),
        (b"\x96", DcpPickle._long_bytes, 64),
        (b"\x94", DcpPickle._memoize, 8),
        (b"\x8f", DcpPickle._empty_set, 64),
        (b"\x90", DcpPickle._add_items, 24),
        (b"\x91", DcpPickle._frozen_set, 64),
        (b"\x93", DcpPickle._stack_global, 160),
        (b"\x81", DcpPickle._newobj, 64),
        (b"b", DcpPickle._build, 0),
        (b"s", DcpPickle._setitem, 200),
        (b"u", DcpPickle._setitems, 200),
    ),
)
