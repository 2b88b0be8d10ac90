"""Issues warnings at the caller's line, however many functions of the package lie between."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent.parent) + "/"


def warn_caller(text: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the line outside the package that called the package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_own(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level + 1)


def _is_own(file: str) -> bool:
    # A context manager that is used as a decorator adds a frame of contextlib.
    return file.startswith(_PACKAGE) or file == contextlib.__file__
