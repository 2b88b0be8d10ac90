"""`from torch… import *` as it was before torch 2.7: it brings names of `typing` too.

Until then torch's modules imported `List`, `Optional` and others, and most of them have no `__all__`, so a star import
took these names along. Some code relies on that and imports nothing from `typing` itself.
"""

from __future__ import annotations

import typing
from typing import Any

_NAMES = ("Any", "Callable", "Dict", "Iterable", "List", "Mapping", "Optional", "Sequence", "Tuple", "Union")


def bring_old_names(module_globals: Any) -> None:
    """Let a module that star-imports from torch find these names, after its own globals and Python's builtins.

    The module has its own builtins (`bound_imports`), so no other module sees the names.
    """
    known = module_globals.get("__builtins__")
    if isinstance(known, dict):
        for name in _NAMES:
            known.setdefault(name, getattr(typing, name))
