"""The keywords of the public entry points: groups of them, who takes which, and what to do instead elsewhere."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypedDict, TypeVar

from shardload.errors import UnsupportedError, UsageError, Wording, keyword
from shardload.keywords.table import ALIASES, EXCEPTIONS, KEYWORDS, NOT_BUILT, NOT_NEEDED, SETTING
from shardload.where import KEYWORD_FIELDS, PLACE_FIELDS, TRUST_FIELDS, CodeTrust, Where

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping

    from shardload.where import RemoteBase, Trust, WhereLike

Params = ParamSpec("Params")
Result = TypeVar("Result")

_NONE: Mapping[str, Any] = MappingProxyType({})


class SourceKeywords(TypedDict, total=False):
    """Keywords that say where a repo's files are."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    subfolder: str | None
    allow_links: bool


class WhereKeywords(SourceKeywords, total=False):
    """Keywords that say where a checkpoint's weights are."""

    variant: str | None
    state_dict: str | None


class TrustKeywords(TypedDict, total=False):
    """Keywords that say what a repo's code may do."""

    trust_remote_code: Trust
    code_revision: str | None
    remote_base: RemoteBase


class RepoKeywords(TrustKeywords, SourceKeywords, total=False):
    """Keywords of what runs a repo's code and reads no weight."""


class ModelKeywords(TrustKeywords, WhereKeywords, total=False):
    """Keywords of what runs a repo's code and reads its weights."""


_GROUPS = {
    f"Unpack[{group.__name__}]": group
    for group in (SourceKeywords, WhereKeywords, RepoKeywords, ModelKeywords)
}


def place_of(where: WhereLike, keywords: Mapping[str, Any] = _NONE) -> Where:
    """Return the Where of an entry point's first argument and its keywords; other keywords are ignored."""
    given = {name: value for name, value in keywords.items() if name in PLACE_FIELDS}
    if isinstance(where, Where):
        return replace(where, **given) if given else where
    return Where(where, **given)


def trust_of(place: Where, keywords: Mapping[str, Any]) -> CodeTrust:
    """Return the CodeTrust of an entry point's keywords; other keywords are ignored."""
    given = {name: value for name, value in keywords.items() if name in TRUST_FIELDS}
    return CodeTrust(revision=place.named_revision, hub=place, **given)


class KeywordError(UsageError, TypeError):
    """A keyword that the function does not have: a misspelt one, or one that belongs to no function at all."""


def entry_point(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Make a public function name its keywords, and decline others by name.

    `help()` and `inspect.signature` list every keyword of a group (`**keywords: Unpack[WhereKeywords]`) with its
    default. A keyword of another entry point or of another loader raises UsageError or UnsupportedError with what to
    do instead; a misspelt one raises KeywordError (also a TypeError) with the name that may be meant.
    """
    signature = _full(inspect.signature(function))
    own = {
        name
        for name, each in signature.parameters.items()
        if each.kind is not inspect.Parameter.POSITIONAL_ONLY
    }

    @functools.wraps(function)
    def checked(*arguments: Params.args, **keywords: Params.kwargs) -> Result:
        for name in keywords:
            if name not in own:
                _decline(name, function.__name__, own)
        return function(*arguments, **keywords)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


def _full(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature in which the names of a group stand in the place of `**keywords`."""
    *plain, last = signature.parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return signature
    names = _GROUPS[last.annotation].__optional_keys__
    group = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for name, each in KEYWORD_FIELDS.items()
        if name in names
    ]
    return signature.replace(parameters=[*plain, *group])


def _decline(name: str, function: str, own: Collection[str]) -> NoReturn:
    """Raise the error that says why `function` has no such keyword and what to do instead."""
    where, meant = f"{name}=", ALIASES.get(name, name)
    if name in NOT_BUILT:
        what = f"{function} does not do {where} in this version"
        raise UnsupportedError(what, where=where, cure=NOT_BUILT[name])
    if meant in own:
        raise UsageError(f"{function} has no {where}", where=where, cure=Wording("pass {0}", keyword(meant)))
    cure = NOT_NEEDED.get(name)
    if cure is None and meant in KEYWORDS:
        cure = EXCEPTIONS.get(function, {}).get(meant, KEYWORDS[meant][1])
    if cure is not None:
        raise UsageError(f"{function} has no {where}", where=where, cure=cure.format(function=function))
    import difflib

    near = [keyword(each) for each in difflib.get_close_matches(name, own, 1, 0.7)]
    cure = f"see help(shardload.{function}) for its keywords"
    if near:
        cure = Wording("did you mean {0}?", *near)
    elif "config" in own:
        cure = SETTING.format(name=name, function=function)
    raise KeywordError(f"{function}() got an unexpected keyword argument {name!r}", where=where, cure=cure)
