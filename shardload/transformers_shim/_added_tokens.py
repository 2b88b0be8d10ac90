"""Splitting text at added tokens, which stay whole whatever the vocabulary says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload.transformers_shim._special_tokens import AddedToken


class Trie:
    """Words to split text at: of the words that start earliest, the longest.

    The name is transformers', whose class is a trie of characters; here a regular expression does the same.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._tokens: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for word in words:
            self.add(word)

    def add(self, word: str) -> None:
        """Add a word; an empty or known word changes nothing."""
        if word and word not in self._tokens:
            self._tokens.add(word)
            self._pattern = None

    def split(self, text: str) -> list[str]:
        """Return the text's pieces in order: the words, and the texts between them. No piece is empty."""
        if not self._tokens:
            return [text] if text else []
        if self._pattern is None:
            longest_first = sorted(self._tokens, key=lambda word: (-len(word), word))
            self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        return [piece for piece in self._pattern.split(text) if piece]


def split_at(text: str, trie: Trie, tokens: Mapping[str, AddedToken | None]) -> list[tuple[str, bool]]:
    """Return (piece, whether it is one of `tokens`), with each token's options applied to its neighbours.

    A `single_word` token beside anything but a space is part of that word.
    """
    pieces = trie.split(text)
    whole = [piece in tokens for piece in pieces]
    for place, piece in enumerate(pieces):
        token = tokens.get(piece) if whole[place] else None
        if token is None:
            continue
        left = pieces[place - 1] if place else ""
        right = pieces[place + 1] if place + 1 < len(pieces) else ""
        if token.rstrip and right:
            pieces[place + 1] = right.lstrip()
        if token.lstrip and left:
            pieces[place - 1] = left.rstrip()
        if token.single_word and left and left[-1] != " ":
            pieces[place - 1] += piece
            pieces[place], whole[place - 1] = "", False
        elif token.single_word and right and right[0] != " ":
            pieces[place + 1] = piece + pieces[place + 1]
            pieces[place], whole[place + 1] = "", pieces[place + 1] in tokens
    return [(piece, flag) for piece, flag in zip(pieces, whole, strict=True) if piece]


def has_late_vocabulary(tokenizer: Any, set_before: frozenset[str]) -> bool:
    """Return whether a tokenizer got its vocabulary after the base constructor had run (`set_before`: what was set).

    Only releases before 4.34 allowed that. They removed the spaces on both sides of a special token given as a text,
    and let one given as an AddedToken match inside a word. Nothing of the subclass is called here.
    """
    late = vars(tokenizer).keys() - set_before
    return any(
        late & _names_in(type(tokenizer), method) for method in ("vocab_size", "get_vocab", "_tokenize")
    )


def _names_in(cls: type[Any], method: str) -> set[str]:
    found = getattr(cls, method, None)
    code = getattr(getattr(found, "fget", found), "__code__", None)
    return set(code.co_names) if code is not None else set()
