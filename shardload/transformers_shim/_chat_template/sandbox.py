"""The environment that chat templates are rendered in. Imports nothing of shardload: the worker runs it alone."""

from __future__ import annotations

import json
import time
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 16 << 20
"""The number of characters that a rendered prompt may have."""


class RaisedByTemplate(TemplateError):  # noqa: N818 - an event, not an error of ours
    """The template called `raise_exception(message)`: it refuses the conversation."""


class TooMuchError(Exception):
    """The template wrote more than MAX_OUTPUT characters."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks the assistant's part for trainers; its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> Any:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox without a loader, with the filters and functions that chat templates use."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, loader=None, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        # It makes filler text of any length.
        self.globals.pop("lipsum", None)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Raise at once; jinja2's own method returns a value that fails only when it is used."""
        kind = type(obj).__name__
        raise SecurityError(f"access to attribute {attribute!r} of {kind!r} object is unsafe.")


def _raise_exception(message: Any) -> NoReturn:
    raise RaisedByTemplate(str(message))


def _strftime_now(form: str) -> str:
    return time.strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, and the model would read the escapes as text.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


_environment: list[_Environment] = []
_compiled: dict[str, Any] = {}


def render(template: str, variables: dict[str, Any]) -> str:
    """Return the rendered text. Raises jinja2's errors, RaisedByTemplate and TooMuchError."""
    if not _environment:
        _environment.append(_Environment())
    if template not in _compiled:
        if len(_compiled) >= 32:
            _compiled.clear()
        _compiled[template] = _environment[0].from_string(template)
    pieces, length = [], 0
    for piece in _compiled[template].generate(variables):
        length += len(piece)
        if length > MAX_OUTPUT:
            raise TooMuchError
        pieces.append(piece)
    return "".join(pieces)


def answer(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """Return {"text": …}, or {"kind": …, "what": …} for a template that failed."""
    try:
        return {"text": render(template, variables)}
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        kind, what = _explain(error)
        return {"kind": kind, "what": what[:2000]}


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, RaisedByTemplate):
        return "raised", str(error)
    if isinstance(error, TemplateSyntaxError):
        return "syntax", f"line {error.lineno}: {error.message}"
    if isinstance(error, SecurityError):
        return "forbidden", str(error)
    if type(error).__name__ in _LIMITS:
        return "limit", _LIMITS[type(error).__name__]
    if "no loader" in str(error):
        return "forbidden", "it includes or imports another file"
    return "failed", f"{type(error).__name__}: {error}"


_LIMITS = {
    "TooMuchError": f"it writes more than {MAX_OUTPUT:,} characters",
    "MemoryError": "it needs more memory than a prompt can",
    "RecursionError": "it calls itself without end",
    "OverflowError": "it counts further than a prompt can",
}
