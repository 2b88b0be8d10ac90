"""Whether a test can be refused anything: it passes only where it, or what it calls in tests/, expects the refusal."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

# What catches an error, what starts a command, and what returns findings instead of raising them.
_EXPECTS = re.compile(
    r"raises\(|\bexcept\b|suppress\(|\b(run|main|examine|check|diagnose)\(|_cli\b|subprocess|findings|Popen"
)
_TESTS = Path(__file__).parents[1]
_seen: dict[Any, bool] = {}


def expects_a_refusal(item: pytest.Item) -> bool:
    """Whether the test, a fixture of it, or a function of tests/ that these reach expects an error or a finding."""
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures is not None else ()
    functions = [getattr(item, "function", None), *(d.func for found in definitions for d in found)]
    return any(_expects(each) for each in functions) or "_cli" in " ".join(getattr(item, "fixturenames", ()))


def _expects(found: Any) -> bool:
    found = inspect.unwrap(found) if callable(found) else found
    if not (inspect.isfunction(found) or inspect.isclass(found)) or not _is_of_tests(found):
        return False
    if found not in _seen:
        _seen[found] = False  # a function may call itself
        _seen[found] = bool(_EXPECTS.search(inspect.getsource(found))) or any(map(_expects, _reached(found)))
    return _seen[found]


def _is_of_tests(found: Any) -> bool:
    try:
        return _TESTS in Path(inspect.getfile(found)).parents
    except (TypeError, OSError):  # built in, or made by a decorator
        return False


def _reached(found: Any) -> Iterator[Any]:
    """Yield what the names in a function, or in the methods of a class, mean in its module."""
    functions = (
        [found] if isinstance(found, FunctionType) else filter(inspect.isfunction, vars(found).values())
    )
    for function in functions:
        names, known = set(_names(function.__code__)), function.__globals__
        meant = [known[name] for name in names if name in known]
        yield from meant
        for module in filter(inspect.ismodule, meant):
            if _is_of_tests(module):
                yield from (vars(module)[name] for name in names if name in vars(module))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
