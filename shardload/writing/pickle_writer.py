"""pickled: the pickle of plain data and of objects that are named and not made: no class of theirs is imported."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack
from typing import Any


@dataclass(frozen=True)
class Name:
    """A class or a function, by its module and its name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What `function` returns for arguments, where the pickle is read."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Object:
    """An object of a class that is made without arguments and then given its state."""

    kind: Name
    state: Any


@dataclass(frozen=True)
class Outside:
    """Something that the reader finds by this key, such as a storage."""

    key: tuple[Any, ...]


def pickled(value: Any) -> bytes:
    """Return a value as a pickle of protocol 2: None, booleans, ints, texts, tuples, lists, dicts, and the above."""
    writer = _Writer()
    writer.write(value)
    return b"\x80\x02" + b"".join(writer.pieces) + b"."


class _Writer:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._known: dict[Name, int] = {}

    def write(self, value: Any) -> None:
        kind = type(value)
        if value is None:
            self.pieces.append(b"N")
        elif kind is bool:
            self.pieces.append(b"\x88" if value else b"\x89")
        elif kind is int:
            self.pieces.append(_int(value))
        elif kind is str:
            raw = value.encode()
            self.pieces.append(b"X" + pack("<I", len(raw)) + raw)
        elif kind is tuple:
            self._all(b"(", value, b"t")
        elif kind is list:
            self._all(b"](", value, b"e")
        elif kind is dict:
            self._all(b"}(", [each for pair in value.items() for each in pair], b"u")
        else:
            self._object(value)

    def _all(self, begin: bytes, values: Any, end: bytes) -> None:
        self.pieces.append(begin)
        for value in values:
            self.write(value)
        self.pieces.append(end)

    def _object(self, value: Any) -> None:
        if isinstance(value, Name):
            self._name(value)
        elif isinstance(value, Call):
            self._name(value.function)
            self.write(value.arguments)
            self.pieces.append(b"R")
        elif isinstance(value, Object):
            self._name(value.kind)
            self.pieces.append(b")\x81")
            self.write(value.state)
            self.pieces.append(b"b")
        elif isinstance(value, Outside):
            self.write(value.key)
            self.pieces.append(b"Q")
        else:
            raise TypeError(f"a {type(value).__name__} is no plain data")

    def _name(self, name: Name) -> None:
        """Write a name, the second time by its number among those that were written."""
        if name in self._known:
            self.pieces.append(b"j" + pack("<I", self._known[name]))
            return
        number = self._known[name] = len(self._known)
        self.pieces.append(f"c{name.module}\n{name.name}\n".encode() + b"r" + pack("<I", number))


def _int(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return pack("<cB", b"K", value)
    if -(1 << 31) <= value < 1 << 31:
        return pack("<ci", b"J", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw
