"""What `from torch… import *` brings: names of `typing` too, where torch's modules of its time had them.

Until torch 2.7 its modules imported `List`, `Optional` and their like, and most name no `__all__`, so a star import
took them along. Code relies on it without a `typing` import of its own.
"""

from __future__ import annotations

import typing
from typing import Any

_NAMES = ("Any", "Callable", "Dict", "Iterable", "List", "Mapping", "Optional", "Sequence", "Tuple", "Union")


def bring_old_names(module_globals: Any) -> None:
    """Let a module that star-imports from torch find these names, after its own globals and Python's builtins.

    The module has builtins of its own (`bound_imports`): no other module sees them.
    """
    known = module_globals.get("__builtins__")
    if isinstance(known, dict):
        for name in _NAMES:
            known.setdefault(name, getattr(typing, name))
