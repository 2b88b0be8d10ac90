"""A plugin that applies every cure of the errors that any tests provoke: `pytest -p tests.cures.suite tests/loading …`.

A public function that raises is called again with the keywords that its error's cure names; what is refused again is a
cure that does not cure. The second calls disturb the tests that provoked them: only the table of this plugin counts.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from typing import Any

import shardload.keywords as front
from shardload.errors import Cures, ShardloadError, keywords_of

PRINTED: Counter[str] = Counter()
WORKED: Counter[str] = Counter()
FAILED: dict[tuple[str, str], str] = {}
_depth = [0]
_entry_point = front.entry_point


def _watched(function: Any) -> Any:
    made = _entry_point(function)
    names = inspect.signature(made).parameters

    @functools.wraps(made)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if _depth[0]:
            return made(*arguments, **keywords)
        _depth[0] += 1
        try:
            return made(*arguments, **keywords)
        except ShardloadError as error:
            _apply(made, names, arguments, keywords, error)
            raise
        finally:
            _depth[0] -= 1

    return call


def _is_more(cure: str) -> bool:
    """Whether keywords are only a part of the cure, or ones to leave out."""
    return any(words in cure for words in ("leave", "in config.json", "load_adapter", "convert the files"))


def _apply(made: Any, names: Any, arguments: Any, keywords: Any, error: ShardloadError) -> None:
    cure = error.cure
    for choice in cure.parts if isinstance(cure, Cures) else (cure,):
        named = keywords_of(choice)
        if not named or ... in named.values() or not named.keys() <= names.keys() or _is_more(str(choice)):
            continue
        if named.get("key_map") == "map.json":
            named["key_map"] = error.report.key_map
        PRINTED[error.code] += 1
        try:
            made(*arguments, **{**keywords, **named})
        except Exception as again:
            FAILED[error.code, str(choice)] = f"{made.__name__}: {type(again).__name__}: {again}"[:400]
        else:
            WORKED[error.code] += 1


front.entry_point = _watched


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and every cure that failed."""
    terminalreporter.section("cures")
    for code in sorted(PRINTED):
        terminalreporter.line(f"{code:<14} applied {PRINTED[code]:>5}  worked {WORKED[code]:>5}")
    for (code, cure), why in FAILED.items():
        terminalreporter.line(f"FAILED {code}: {cure[:200]}\n    {why}")
