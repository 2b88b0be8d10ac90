"""Parses untrusted JSON with bounded memory, refuses doubled keys, and names files that are not JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import HEAD_BYTES, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PARSED = 180_000_000  # bytes of memory


class NoJsonError(ValueError):
    """The bytes are not an accepted JSON document: the reason, and the cure and the code where they are known."""

    def __init__(self, why: str, cure: str | None = None, code: str | None = None) -> None:
        super().__init__(why)
        self.cure = cure
        self.code = code


class JsonTooLargeError(NoJsonError):
    """The document would take too much memory to parse."""


def parse_json(
    raw: bytes,
    name: str,
    *,
    entry_bytes: int = 350,
    parse_int: Callable[[str], Any] = int,
    constants: bool = True,
) -> Any:
    """Return the JSON document that the bytes of a file hold. `name` is the name of the file.

    Raises NoJsonError for bytes that are not UTF-8 or not JSON, for an object with a key twice, and for a document that
    would take over 180 MB of memory to parse: a few MB of brackets become as many lists, so brackets and commas are
    counted before. `entry_bytes` is the memory of one entry. With `constants`, NaN and Infinity are accepted, as Python
    does, and so is `{"__float__": "Infinity"}`, which transformers writes for them.
    """
    try:
        _refuse_bomb(raw, entry_bytes)
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_with_floats if constants else _without_doubles,
            parse_int=parse_int,
            parse_constant=None if constants else _no_constant,
        )
    except RecursionError:
        raise NoJsonError("it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _named(error, raw, name) from error


def _named(error: ValueError, raw: bytes, name: str) -> NoJsonError:
    """Return an error that names the kind of the file if it is known, else the fault in the JSON."""
    kind = kind_of(raw[:HEAD_BYTES], name)
    if kind is not None:
        return NoJsonError(f"it is {kind.what}", kind.cure, kind.code)
    if raw.startswith(b"\xef\xbb\xbf"):
        return NoJsonError("it begins with a byte order mark", "save it as UTF-8 without one")
    return error if isinstance(error, NoJsonError) else NoJsonError(str(error))


def _refuse_bomb(raw: bytes, entry_bytes: int) -> None:
    text = len(raw) if raw.isascii() else 4 * len(raw)
    estimate = len(raw) + text + 80 * (raw.count(b"[") + raw.count(b"{")) + entry_bytes * raw.count(b",")
    if estimate > MOST_PARSED:
        raise JsonTooLargeError(
            f"it would take about {estimate // 1_000_000:,} MB to parse, the limit is {MOST_PARSED // 1_000_000} MB"
        )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {ascii(twice)[:120]} stands twice")
    return found


_FLOATS = ("Infinity", "-Infinity", "NaN")


def _with_floats(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] == "__float__" and pairs[0][1] in _FLOATS:
        return float(pairs[0][1])
    return _without_doubles(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
