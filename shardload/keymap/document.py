"""A key map's JSON file, read as untrusted input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shardload._system.file_errors import is_absent, unreadable
from shardload._system.json_text import parse_json
from shardload.errors import NotFoundError, UsageError
from shardload.keymap.fingerprint import Fingerprint
from shardload.keymap.rule import whole_number
from shardload.keymap.rules import RULES, rule_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from shardload.keymap.rule import Rule

VERSION = 1
LARGEST_FILE = 32 << 20  # bytes
MOST_RULES = 20_000
MOST_LINES = 200_000  # of a list of keys

_FIELDS = {
    "version", "source", "target", "rules", "unchanged", "unresolved", "confidence", "unproven", "resident_bytes"
}  # fmt: skip
_CURE = "write one with KeyMap.to_json, or with shardload doctor --write-map"


class Parts(Protocol):
    """The fields of a KeyMap that its file holds."""

    @property
    def rules(self) -> Sequence[Rule]: ...  # noqa: D102
    @property
    def source(self) -> Fingerprint | None: ...  # noqa: D102
    @property
    def unchanged(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def unresolved_source(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def unresolved_target(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def unproven(self) -> Sequence[str]: ...  # noqa: D102


def to_document(key_map: Parts) -> dict[str, Any]:
    """Return a map as JSON data; a map that is bound to no checkpoint has only its version and its rules."""
    document: dict[str, Any] = {"version": VERSION}
    for side in ("source", "target"):
        fingerprint = getattr(key_map, side)
        if fingerprint is not None:
            document[side] = vars(fingerprint)
    for rule in key_map.rules:
        if rule.op not in RULES:
            raise UsageError(
                f"the map has the rules of a class ({rule.op}), which can't be written: they need the model",
                cure="bind the map to the checkpoint: KeyMap.bind(checkpoint.tensors) states them for its tensors",
            )
    document["rules"] = [rule.to_dict() for rule in key_map.rules]
    if key_map.source is not None:
        document["unchanged"] = list(key_map.unchanged)
    if key_map.source is not None or key_map.unresolved_source or key_map.unresolved_target:
        document["unresolved"] = {
            "source": list(key_map.unresolved_source),
            "target": list(key_map.unresolved_target),
        }
    if key_map.unproven:
        document["unproven"] = list(key_map.unproven)
    for name in ("confidence", "resident_bytes"):
        if getattr(key_map, name) is not None:
            document[name] = getattr(key_map, name)
    return document


def to_text(key_map: Parts) -> str:
    """Return a map as JSON text, with one line for each rule and each pattern."""
    parts = []
    for name, value in to_document(key_map).items():
        if isinstance(value, list) and value:
            lines = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            text = f"[\n    {lines}\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a map's file. Raises NotFoundError, and UsageError for one too large."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, OSError) and not is_absent(error):
            raise unreadable(file, error) from error
        raise NotFoundError(
            f"the key map can't be read: {getattr(error, 'strerror', error)}",
            where=str(file),
            cure="pass the path of its JSON file",
        ) from error
    return content


def parts_of(text: str | bytes) -> dict[str, Any]:
    """Return a KeyMap's fields from its JSON document. Raises UsageError for what `to_document` would not write."""
    document = _parsed(text)
    if not isinstance(document, dict):
        raise UsageError("this is no key map: its JSON is no object", cure=_CURE)
    if document.get("version") != VERSION or type(document.get("version")) is not int:
        raise UsageError(
            f"key map version {str(document.get('version'))[:40]} is not known; this reads version {VERSION}"
        )
    odd = sorted(document.keys() - _FIELDS)
    if odd:
        raise UsageError(
            f"a key map has no field {repr(odd[0])[:80]}", cure=f"it has {', '.join(sorted(_FIELDS))}"
        )
    entries = document.get("rules")
    if not isinstance(entries, list) or len(entries) > MOST_RULES:
        raise UsageError(f"a key map holds a list of at most {MOST_RULES:,} rules")
    unresolved = _object("unresolved", document.get("unresolved", {}), {"source", "target"})
    resident = document.get("resident_bytes")
    return {
        "rules": tuple(rule_of(entry) for entry in entries),
        "source": _fingerprint("source", document.get("source")),
        "target": _fingerprint("target", document.get("target")),
        "unchanged": _lines("unchanged", document.get("unchanged", [])),
        "unresolved_source": _lines("unresolved", unresolved.get("source", [])),
        "unresolved_target": _lines("unresolved", unresolved.get("target", [])),
        "unproven": _lines("unproven", document.get("unproven", [])),
        "confidence": _confidence(document.get("confidence")),
        "resident_bytes": None
        if resident is None
        else whole_number("resident_bytes", resident, most=1 << 62),
    }


def _parsed(text: str | bytes) -> Any:
    if len(text) > LARGEST_FILE:
        raise UsageError(f"a key map has at most {LARGEST_FILE:,} bytes")
    try:
        raw = text.encode() if isinstance(text, str) else text
        parsed = parse_json(raw, "", entry_bytes=100, constants=False)
        json.dumps(
            parsed, ensure_ascii=False
        ).encode()  # no key has half of a surrogate pair, and no file can
        return parsed
    except ValueError as error:
        cure, code = getattr(error, "cure", None), getattr(error, "code", None)
        raise UsageError(f"this is no key map: {str(error)[:200]}", cure=cure or _CURE, code=code) from error


def _object(what: str, value: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() - names:
        raise UsageError(
            f"{what} of a key map is an object with {' and '.join(sorted(names))}", where=repr(value)[:200]
        )
    return value


def _fingerprint(side: str, value: Any) -> Fingerprint | None:
    if value is None:
        return None
    parts = _object(side, value, {"keys", "sha256"})
    return Fingerprint(parts.get("keys", -1), parts.get("sha256", ""))


def _lines(what: str, value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or len(value) > MOST_LINES
        or not all(isinstance(line, str) for line in value)
    ):
        raise UsageError(
            f"{what} of a key map is a list of at most {MOST_LINES:,} texts", where=repr(value)[:200]
        )
    return tuple(value)


def _confidence(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UsageError("confidence of a key map is a number from 0 to 1", where=repr(value)[:200])
    return float(value)
