"""The public entry points, and the keywords that each takes."""

from __future__ import annotations

import inspect

import shardload
from shardload.keywords.table import ALIASES, KEYWORDS, NO_EFFECT, NOT_BUILT, NOT_NEEDED

ENTRY_POINTS = {
    name: function
    for name in shardload.__all__
    if inspect.isfunction(function := getattr(shardload, name)) and hasattr(function, "__signature__")
}
OWN = {name: set(inspect.signature(function).parameters) for name, function in ENTRY_POINTS.items()}
KNOWN = sorted({*KEYWORDS, *ALIASES, *NO_EFFECT, *NOT_BUILT, *NOT_NEEDED})


def with_default(function, name):
    parameter = inspect.signature(ENTRY_POINTS[function]).parameters[name]
    return (
        parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.default is not inspect.Parameter.empty
    )


def is_translated(function, keyword):
    takers, values, *_ = NO_EFFECT.get(keyword, ((), ()))
    harmless = function in takers and (values is None or None in values)
    return harmless or ALIASES.get(keyword) in OWN[function]
