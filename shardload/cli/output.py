"""Writing to the terminal or a pipe: the only place that prints."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from shardload._system import process_memory as memory
from shardload.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO


# Under PYTHONUNBUFFERED one large write to a pipe whose reader leaves is cut short without an error.
_PIECE = 1 << 15

# Names in files are untrusted: unescaped, they could move the cursor or reverse a line.
escape = printable
size_of = memory.size_of


def escape_lines(text: str) -> str:
    """Return `text` escaped, its line breaks kept."""
    return "\n".join(escape(line) for line in text.split("\n"))


def takes_colour(stream: TextIO) -> bool:
    """Whether a stream takes styles: it is a terminal, not a dumb one, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Return the number of columns of the terminal; a pipe has no limit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def paint(text: str, **style: Any) -> str:
    """Return `text` in a style of `click.style`, or unchanged if stdout takes no styles."""
    return click.style(text, **style) if takes_colour(sys.stdout) else text


def say(text: str) -> None:
    """Write data to stdout. Names in it must be escaped already."""
    write(f"{text}\n")


def write(text: str) -> None:
    """Write a piece of data to stdout without a line end, and flush."""
    for start in range(0, len(text), _PIECE):
        sys.stdout.write(text[start : start + _PIECE])
    sys.stdout.flush()


def say_json(document: Any) -> None:
    """Write one JSON document to stdout, in ASCII: no name in it can attack the terminal."""
    say(json.dumps(document, indent=2, default=str))


def complain(text: str) -> None:
    """Write an error's message to stderr."""
    label = click.style("error:", fg="red", bold=True) if takes_colour(sys.stderr) else "error:"
    sys.stderr.write(f"{label} {escape_lines(text)}\n")


def tell(text: str) -> None:
    """Write a message to stderr."""
    sys.stderr.write(escape_lines(text) + "\n")
    sys.stderr.flush()


def columns(rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), indent: str = "") -> list[str]:
    """Return lines of aligned columns, two spaces apart; `right` names the columns aligned to the right."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        (
            indent
            + "  ".join(
                cell.rjust(width) if place in right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in table
    ]


def grown(nbytes: float) -> str:
    """Return a change of memory with its sign; "0" for less than 50 kB."""
    return "0" if abs(nbytes) < 50_000 else f"{nbytes / 1e6:+,.1f} MB"
