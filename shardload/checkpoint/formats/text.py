"""Values of a file, as error messages show them."""

from __future__ import annotations

from typing import Any

_LONGEST = 120


def quote(value: Any) -> str:
    """Return a value from a file for a message: on one line, control and bidi characters escaped, cut if long."""
    try:
        text = repr(value) if not isinstance(value, list) or len(value) <= 20 else f"{value[:20]!r}..."
    except ValueError:  # an int of more digits than Python will print
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
