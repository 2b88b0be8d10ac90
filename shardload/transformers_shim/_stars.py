"""What a star import from transformers brings: the names that the importing code reads and has from nowhere else."""

from __future__ import annotations

import builtins
import dis
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def star_module(
    name: str, frame: FrameType, find: Callable[[str], Any], every: Mapping[str, Any]
) -> ModuleType:
    """Return a module to star-import from: the names of `every`, and what `find` gives for those that the code lacks.

    `frame` is that of the module whose line imports. Names with an underscore are not brought.
    """
    made = ModuleType(name)
    found = {each: find(each) for each in _unbound_names(frame) if not each.startswith("_")}
    vars(made).update({each: value for each, value in found.items() if value is not None})
    vars(made).update({each: value for each, value in every.items() if not each.startswith("_")})
    return made


def _unbound_names(module: FrameType) -> set[str]:
    """Return the names that a module's code reads and neither binds nor has yet."""
    reads, binds = set[str](), set[str]()
    for code in _codes_in(module.f_code):
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
                reads.add(step.argval)
            elif step.opname == "STORE_GLOBAL" or (step.opname == "STORE_NAME" and code is module.f_code):
                binds.add(step.argval)
    return reads - binds - set(vars(builtins)) - set(module.f_globals)


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes_in(each)
