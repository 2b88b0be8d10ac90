"""Texts that name keyword arguments: Python and the command line say them in their own words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

Words = Callable[[str, Any], "str | None"]
"""How a front end writes a keyword and its value; None for a keyword that it has no words for."""


def in_python(name: str, value: Any) -> str:
    """Return a keyword argument as Python writes it: `copy=True`, and `token=…` where the caller chooses the value."""
    return f"{name}=…" if value is ... else f"{name}={value!r}"


class OfReport(str):
    """The name of the file in which `shardload doctor --write-map` puts a report's key map.

    Python has the map at hand, so there it reads `error.report.key_map`.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Return what Python's users type."""
        return "error.report.key_map"


class Wording(str):
    """A text that names keyword arguments, and keeps them as data so that the command line can name its options.

    `template` is a format string: `{0}`, `{1}` … stand for `parts` (texts, or other Wordings), `{name}` for the
    keyword `name` with the value given here; `...` is a value that the caller chooses. As a `str` it has Python's
    words.

    >>> cure = Wording("pass {copy} to read {0} instead", "a.bin", copy=True)
    >>> cure
    'pass copy=True to read a.bin instead'
    >>> cure.said(lambda name, value: f"--{name}")
    'pass --copy to read a.bin instead'
    >>> cure.keywords
    {'copy': True}
    """

    __slots__ = ("own", "parts", "template")

    template: str
    parts: tuple[str, ...]
    own: dict[str, Any]

    def __new__(cls, template: str, /, *parts: object, **keywords: Any) -> Self:
        """Format the template in Python's words."""
        texts = tuple(part if isinstance(part, Wording) else str(part) for part in parts)
        named = {name: in_python(name, value) for name, value in keywords.items()}
        self = super().__new__(cls, template.format(*texts, **named))
        self.template, self.parts, self.own = template, texts, keywords
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Pickle by the arguments: errors cross process pools."""
        return (self.template, *self.parts), self.own

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords that the text and its parts name, with their values."""
        inner = [part.keywords for part in self.parts if isinstance(part, Wording)]
        return {name: value for table in (*inner, self.own) for name, value in table.items()}

    def said(self, words: Words) -> str:
        """Return the text in a front end's words; a keyword that it has none for stays in Python's."""
        named = {name: words(name, value) or in_python(name, value) for name, value in self.own.items()}
        return self.template.format(*(said(part, words) for part in self.parts), **named)


class Cures(Wording):
    """Several cures of which one is enough: "pass copy=True; or move the file".

    A front end leaves out those whose keywords it has no words for, unless none would be left.

    >>> cure = Cures("correct the config", Wording("pass {config}", config=...))
    >>> cure
    'correct the config; or pass config=…'
    >>> cure.said(lambda name, value: None)
    'correct the config'
    """

    __slots__ = ()

    def __new__(cls, *cures: str) -> Self:
        """Join the cures by "; or "; those of other Cures count one by one."""
        flat = [one for cure in cures for one in (cure.parts if isinstance(cure, Cures) else (cure,))]
        return super().__new__(cls, "; or ".join(["{}"] * len(flat)), *flat)

    def __getnewargs_ex__(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Pickle by the arguments."""
        return self.parts, {}

    def said(self, words: Words) -> str:
        """Return the cures that the front end has words for."""
        known = [
            part
            for part in self.parts
            if all(words(name, value) is not None for name, value in keywords_of(part).items())
        ]
        return "; or ".join(said(part, words) for part in known or self.parts)


def keyword(name: str, value: Any = ...) -> Wording:
    """Return the text that is one keyword argument: "copy=True"."""
    return Wording(f"{{{name}}}", **{name: value})


def said(text: str, words: Words) -> str:
    """Return a text in a front end's words, where it is a Wording; any other as it is."""
    return text.said(words) if isinstance(text, Wording) else text


def keywords_of(text: str | None) -> dict[str, Any]:
    """Return the keywords that a text names, with their values; {} for a plain text."""
    return text.keywords if isinstance(text, Wording) else {}


def without(cure: str | None, *names: str) -> str | None:
    """Return a cure without those choices that name one of these keywords; None when nothing is left."""
    if keywords_of(cure).keys().isdisjoint(names):
        return cure
    left = (
        [part for part in cure.parts if keywords_of(part).keys().isdisjoint(names)]
        if isinstance(cure, Cures)
        else []
    )
    return Cures(*left) if left else None


def joined(separator: str, texts: Iterable[str]) -> str:
    """Join texts as `str.join` does, and keep the keywords that they name."""
    found = list(texts)
    if not any(isinstance(text, Wording) for text in found):
        return separator.join(found)
    return Wording(separator.replace("{", "{{").replace("}", "}}").join(["{}"] * len(found)), *found)


def plain_keywords(text: str | None) -> dict[str, Any]:
    """Return the keywords that a text names as JSON data: None for a value that the caller chooses."""
    return {name: None if value is ... else value for name, value in keywords_of(text).items()}


def printable(text: str) -> str:
    r"""Return a text on one line, with unprintable characters (control, bidi, invisible) as `\n`, `\x1b`, `\u202e`.

    A Wording of one line keeps its keywords.
    """
    if text.isprintable():
        return text
    if isinstance(text, Wording):
        arguments, named = text.__getnewargs_ex__()
        return type(text)(*map(printable, arguments), **named)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
