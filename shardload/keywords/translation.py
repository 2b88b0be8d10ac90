"""Translation: what keywords of other loaders mean here, and the errors for those that mean nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from shardload.errors import Cures, UnsupportedError, UsageError, Wording, keyword
from shardload.keywords.table import (
    ALIASES,
    EXCEPTIONS,
    KEYWORDS,
    NO_EFFECT,
    NOT_BUILT,
    NOT_NEEDED,
    UNTIL_SAID,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class KeywordError(UsageError, TypeError):
    """A keyword that the function does not have: a misspelt one, or one that belongs to no function at all."""


@dataclass(frozen=True)
class Settings:
    """Keywords that only a repo's own files can know: settings of its config or of its tokenizer."""

    values: Mapping[str, Any]
    function: str
    own: Collection[str]

    def refuse(self, name: str, what: str, known: Iterable[str]) -> NoReturn:
        """Raise the error for a name that `what`, which knows the names `known`, does not have either."""
        raise unknown(name, self.function, self.own, f"; {what} has no such setting", known)


@dataclass(frozen=True)
class Translation:
    """The keywords of a call, each by its name here."""

    keywords: dict[str, Any]
    settings: dict[str, Any]
    notes: list[str]


def translation(
    keywords: Mapping[str, Any], function: str, own: Collection[str], settings: Collection[str] = ()
) -> Translation:
    """Return what the keywords of a call of `function`, whose own keywords are `own`, mean.

    A synonym becomes the name here; a keyword that can't change the result is left out, with a note. `settings` are
    names that a repo's files usually know: where there are some, other names that no loader knows, and that are not
    nearly one of `own`, are kept too for the repo's files to judge. All else is declined by name.
    """
    made = Translation({}, {}, [])
    for name, value in keywords.items():
        meant = ALIASES.get(name, name)
        if meant in own:
            if meant in made.keywords or (meant != name and meant in keywords):
                raise UsageError(
                    Wording("{0} got {1} and its synonym {2}=", function, keyword(meant), name),
                    where=f"{name}=",
                    cure=f"leave {name}= out",
                )
            if value is None and name in UNTIL_SAID:
                continue
            made.keywords[meant] = value
        elif _changes_nothing(name, value, function):
            made.notes.append(f"{name}= has no effect here: {NO_EFFECT[name][2]}")
        elif settings and not _known(name):
            if name not in settings and difflib.get_close_matches(name, own, 1, 0.8):
                raise unknown(name, function, own)
            made.settings[name] = value
        else:
            _decline(name, function, own)
    return made


def _changes_nothing(name: str, value: Any, function: str) -> bool:
    if name not in NO_EFFECT:
        return False
    takers, values, *_ = NO_EFFECT[name]
    return function in takers and (values is None or any(value is each for each in values))


def _known(name: str) -> bool:
    return any(name in table for table in (NOT_BUILT, NOT_NEEDED, NO_EFFECT, KEYWORDS, ALIASES))


def _decline(name: str, function: str, own: Collection[str]) -> NoReturn:
    """Raise the error that says why `function` has no such keyword and what to do instead."""
    where, meant = f"{name}=", ALIASES.get(name, name)
    if name in NOT_BUILT:
        what = f"{function} does not do {where} in this version"
        raise UnsupportedError(what, where=where, cure=NOT_BUILT[name])
    cure = NOT_NEEDED.get(name)
    if name in NO_EFFECT:
        *_, why, otherwise = NO_EFFECT[name]
        cure = otherwise or f"leave it out: {why}"
    if cure is None and meant in KEYWORDS:
        cure = EXCEPTIONS.get(function, {}).get(meant, KEYWORDS[meant][1])
    if cure is not None:
        raise UsageError(f"{function} has no {where}", where=where, cure=cure.format(function=function))
    raise unknown(name, function, own)


def unknown(
    name: str, function: str, own: Collection[str], also: str = "", known: Iterable[str] = ()
) -> KeywordError:
    """Return the error for a name that nobody knows, with the one that may be meant."""
    synonyms = (synonym for synonym, meant in ALIASES.items() if meant in own)
    near = difflib.get_close_matches(name, [*own, *synonyms], 1, 0.7)
    cures: list[str] = [Wording("did you mean {0}?", keyword(each)) for each in near]
    if not near:
        cures = [f"did you mean {each}=…?" for each in difflib.get_close_matches(name, list(known), 1, 0.7)]
    return KeywordError(
        f"{function}() got an unexpected keyword argument {name!r}{also}",
        where=f"{name}=",
        cure=Cures(*cures) if cures else f"see help(shardload.{function}) for its keywords",
    )
