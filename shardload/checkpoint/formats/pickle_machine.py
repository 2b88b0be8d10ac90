"""PickleMachine: builds the plain data of a pickle of protocol 2. It can name nothing and call nothing.

Why not `pickle.Unpickler` with `find_class` and `persistent_load` overridden: its memo grows to the largest index
that a file names (five bytes ask for 64 GB), it hashes tuples nested a million deep (the process crashes, without an
exception), BUILD and NEWOBJ change any object on the stack, and its memory can't be bounded. Here every opcode is
charged for the memory that it may add, and keys of dicts are scalars, or stand for something else and are not hashed.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, ClassVar

from shardload._system.file_kind import REFETCH, RESAVE
from shardload.checkpoint.formats.aside import Aside
from shardload.checkpoint.formats.torch_globals import PickledDict, Unreadable, as_key
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

MAX_PICKLE_BYTES = 64_000_000
MAX_OBJECT_BYTES = 170_000_000  # with the pickle itself; an upper estimate
_LONG_TEXT = 4096
_LEAST_COST = 20  # so that the limit bounds the time too: 8 million opcodes

_INT = Struct("<i").unpack_from
_UINT = Struct("<I").unpack_from
_USHORT = Struct("<H").unpack_from
_DOUBLE = Struct(">d").unpack_from


class EndOfDataError(Exception):
    """The pickle goes on beyond the bytes that were read."""


class PickleMachine:
    """One pickle in `data`, from byte `start`. `load()` returns what it describes; `position` is then its end.

    Raises EndOfDataError if `data` is too short, UnsupportedError for another protocol and for more objects than
    a checkpoint has, CorruptError for anything else.
    """

    __slots__ = ("_data", "_marks", "_memo", "_room", "_stack", "position", "where")

    actions: ClassVar[list[Callable[[Any], None]]] = []  # by opcode
    costs: ClassVar[list[int]] = []  # bytes that each opcode may add to memory, an upper estimate

    def __init__(self, data: bytes, where: str, start: int = 0) -> None:
        self.position = start
        self.where = where
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: list[Any] = []
        self._room = MAX_OBJECT_BYTES - len(data)

    def load(self) -> Any:
        """Interpret the pickle up to its STOP."""
        try:
            self._run()
            return self._stack.pop()
        except (struct_error, IndexError) as error:
            if self.position >= len(self._data) or isinstance(error, struct_error):
                raise EndOfDataError from None
            raise self._corrupt("it takes something from the stack or the memo that is not there") from None
        except UnicodeDecodeError:
            raise self._corrupt("a text is not UTF-8") from None
        except (
            TypeError,
            ValueError,
            KeyError,
            OverflowError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise self._corrupt(str(error)[:200] or type(error).__name__) from None

    def _run(self) -> None:
        data, actions, costs, memo = self._data, self.actions, self.costs, self._memo
        position, room, stack = self.position, self._room, self._stack
        try:
            while (opcode := data[position]) != _STOP:
                position += 1
                room -= costs[opcode]
                if room < 0:
                    self._too_large()
                # Two thirds of a checkpoint's opcodes are these three: inlined, they save a third of the time.
                if opcode == _PUT4:
                    index = _UINT(data, position)[0]
                    position += 4
                    if index == len(memo):
                        memo.append(stack[-1])
                    else:
                        self._put(index)
                elif opcode == _GET1:
                    stack.append(memo[data[position]])
                    position += 1
                elif opcode == _INT1:
                    stack.append(data[position])
                    position += 1
                else:
                    self.position, self._room = position, room
                    actions[opcode](self)
                    position, room, stack = self.position, self._room, self._stack
        finally:
            self.position = max(position, self.position)
        self.position += 1

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"the checkpoint's pickle is damaged: {what}",
            where=f"{self.where}, byte {self.position:,}",
            cure=REFETCH,
        )

    def _too_large(self) -> NoReturn:
        raise UnsupportedError(
            f"the checkpoint's pickle describes more than {MAX_OBJECT_BYTES // 1_000_000} MB of objects",
            where=self.where,
            cure=f"split it into shards, or {RESAVE}",
            code="E-FORMAT",
        )

    def _charge(self, nbytes: int) -> None:
        """Charge one opcode that may be large by itself, at once."""
        self._room -= nbytes
        if self._room < 0:
            self._too_large()

    def _check(self, length: int) -> None:
        if length > MAX_PICKLE_BYTES:
            raise self._corrupt(f"a text of {length:,} bytes")
        if self.position + length > len(self._data):
            raise EndOfDataError

    def _take(self, length: int) -> bytes:
        self._check(length)
        start = self.position
        self.position += length
        return self._data[start : self.position]

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    # Constants ------------------------------------------------------------------------------------------------

    def _proto(self) -> None:
        version = self._take(1)[0]
        if version != 2:
            raise UnsupportedError(
                f"the checkpoint's pickle is of protocol {version}; torch.load(weights_only=True) reads protocol 2",
                where=self.where,
                cure=f"save it with the default pickle_protocol of torch.save, or {RESAVE}",
                code="E-FORMAT",
            )

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _int4(self) -> None:
        self._stack.append(_INT(self._data, self.position)[0])
        self.position += 4

    def _int2(self) -> None:
        self._stack.append(_USHORT(self._data, self.position)[0])
        self.position += 2

    def _long(self) -> None:
        length = self._take(1)[0]
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _float(self) -> None:
        self._stack.append(_DOUBLE(self._data, self.position)[0])
        self.position += 8

    def _text(self) -> None:
        length = _UINT(self._data, self.position)[0]
        self.position += 4
        if length > _LONG_TEXT:
            self._check(length)
            self._charge(5 * length)  # its bytes, and four a character in the worst case
            self._stack.append(str(self._take(length), "utf-8"))
        else:
            self._push_text(self._take(length))

    def _push_text(self, raw: bytes) -> None:
        text = str(raw, "utf-8")
        # One emoji makes every character of a text take four bytes.
        self._room -= len(raw) if text.isascii() else 4 * len(raw) + 40
        self._stack.append(text)

    def _short_text(self) -> None:
        # Python 2 wrote it; torch decodes it as UTF-8 too.
        self._push_text(self._take(self._take(1)[0]))

    # Containers -----------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _tuple(self) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _tuple1(self) -> None:
        self._stack[-1] = (self._stack[-1],)

    def _tuple2(self) -> None:
        stack = self._stack
        last = stack.pop()
        stack[-1] = (stack[-1], last)

    def _tuple3(self) -> None:
        stack = self._stack
        last = stack.pop()
        second = stack.pop()
        stack[-1] = (stack[-1], second, last)

    def _append(self) -> None:
        item = self._stack.pop()
        if type(self._stack[-1]) is list:
            self._stack[-1].append(item)
        elif type(self._stack[-1]) is not Aside:
            raise TypeError("APPEND to what is no list")

    def _appends(self) -> None:
        items = self._pop_mark()
        if type(self._stack[-1]) is list:
            self._stack[-1].extend(items)
        elif type(self._stack[-1]) is not Aside:
            raise TypeError("APPENDS to what is no list")

    def _setitem(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set([key], [value])

    def _setitems(self) -> None:
        items = self._pop_mark()
        if len(items) % 2:
            raise ValueError("a dict with a key and no value")
        self._set(items[::2], items[1::2])

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Aside:
            return
        if type(target) is not dict and type(target) is not PickledDict:
            raise TypeError("SETITEMS on what is no dict")
        keys = [key if type(key) is str else as_key(key) for key in keys]
        self._charge(100 * len(keys))
        expected = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != expected:
            raise ValueError("a dict has the same key twice")

    # The memo: every pickler writes indices that grow by one (Python 2 from 1) ------------------------------------

    def _put1(self) -> None:
        index = self._data[self.position]
        self.position += 1
        self._put(index)

    def _put(self, index: int) -> None:
        memo = self._memo
        if index == len(memo):
            memo.append(self._stack[-1])
        elif index < len(memo):
            memo[index] = self._stack[-1]
        elif index == 1:
            memo += [_UNSET, self._stack[-1]]
        else:
            raise ValueError(f"memo index {index:,} after {len(memo):,}")

    def _get4(self) -> None:
        self._stack.append(self._memo[_UINT(self._data, self.position)[0]])
        self.position += 4

    def _unknown(self) -> None:
        raise ValueError(f"{self._data[self.position - 1]:#x} is not an opcode of protocol 2")


_UNSET = Unreadable("an object that the pickle never made")
_STOP, _PUT4, _GET1, _INT1 = b".rhK"

# Opcode, action, cost. The three that `_run` inlines have only a cost.
_TABLE: tuple[tuple[bytes, Callable[[Any], None], int], ...] = (
    (b"\x80", PickleMachine._proto, 0),
    (b"N", PickleMachine._none, 8),
    (b"\x88", PickleMachine._true, 8),
    (b"\x89", PickleMachine._false, 8),
    (b"J", PickleMachine._int4, 50),
    (b"K", PickleMachine._unknown, 8),
    (b"M", PickleMachine._int2, 50),
    (b"\x8a", PickleMachine._long, 60),
    (b"G", PickleMachine._float, 50),
    (b"X", PickleMachine._text, 64),
    (b"U", PickleMachine._short_text, 64),
    (b"(", PickleMachine._mark, 90),
    (b")", PickleMachine._empty_tuple, 8),
    (b"]", PickleMachine._empty_list, 88),
    (b"}", PickleMachine._empty_dict, 96),
    (b"t", PickleMachine._tuple, 64),
    (b"\x85", PickleMachine._tuple1, 64),
    (b"\x86", PickleMachine._tuple2, 72),
    (b"\x87", PickleMachine._tuple3, 80),
    (b"a", PickleMachine._append, 24),
    (b"e", PickleMachine._appends, 24),
    (b"s", PickleMachine._setitem, 140),
    (b"u", PickleMachine._setitems, 140),
    (b"q", PickleMachine._put1, 8),
    (b"r", PickleMachine._unknown, 8),
    (b"h", PickleMachine._unknown, 8),
    (b"j", PickleMachine._get4, 8),
)


def add_opcodes(
    kind: type[PickleMachine], table: tuple[tuple[bytes, Callable[[Any], None], int], ...]
) -> None:
    """Add opcodes to those that a kind of machine inherits; each row is opcode, action, cost."""
    kind.actions, kind.costs = [*kind.actions], [*kind.costs]
    for opcode, action, cost in table:
        kind.actions[opcode[0]] = action
        kind.costs[opcode[0]] = max(cost, _LEAST_COST)


PickleMachine.actions = [PickleMachine._unknown] * 256
PickleMachine.costs = [0] * 256
add_opcodes(PickleMachine, _TABLE)
