"""`transformers.tokenization_utils`: the base class of tokenizers written in Python."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Any

from shardload.transformers_shim._added_tokens import Trie, has_late_vocabulary, split_at
from shardload.transformers_shim._lengths import TruncationStrategy
from shardload.transformers_shim._python_encoding import PythonEncodingMixin
from shardload.transformers_shim.tokenization_utils_base import (
    AddedToken,
    BatchEncoding,
    EncodedInput,
    EncodedInputPair,
    PaddingStrategy,
    PreTokenizedInput,
    PreTokenizedInputPair,
    PreTrainedTokenizerBase,
    TensorType,
    TextInput,
    TextInputPair,
)

__all__ = [
    "AddedToken",
    "BatchEncoding",
    "EncodedInput",
    "EncodedInputPair",
    "PaddingStrategy",
    "PreTokenizedInput",
    "PreTokenizedInputPair",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerBase",
    "TensorType",
    "TextInput",
    "TextInputPair",
    "Trie",
    "TruncationStrategy",
]


class PreTrainedTokenizer(PythonEncodingMixin, PreTrainedTokenizerBase):
    """Splits text at the added tokens; a subclass splits the rest and knows the vocabulary.

    Subclasses define `vocab_size`, `get_vocab`, `_tokenize`, `_convert_token_to_id` and `_convert_id_to_token`.
    The constructor stores options and special tokens and calls none of these: the subclass may have no
    vocabulary yet. Special tokens are looked up, and added where the vocabulary lacks them, once the
    constructor of the subclass has returned.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.tokens_trie = Trie()
        given = kwargs.pop("added_tokens_decoder", None) or {}
        vars(self).setdefault("_added_tokens_decoder", {})
        self._added_tokens_decoder: dict[int, AddedToken]
        self._added_tokens_encoder: dict[str, int] = {}
        self.added_tokens_decoder = {**self._added_tokens_decoder, **given}
        self._decode_use_source_tokenizer = False
        super().__init__(**kwargs)
        self._strips_spaces = False
        self._set_by_base = frozenset(vars(self))

    def _constructed(self) -> None:
        # Settings that list added tokens were saved by a release that no longer stripped spaces.
        self._strips_spaces = not self._added_tokens_decoder and has_late_vocabulary(self, self._set_by_base)
        missing = [t for t in self.all_special_tokens_extended if str(t) not in self._added_tokens_encoder]
        if missing:
            self._add_tokens(missing, special_tokens=True)
        self._update_trie()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The id of every added token, including special tokens in the vocabulary."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Every added token by its id, in the order of the ids."""
        return dict(sorted(self._added_tokens_decoder.items()))

    @added_tokens_decoder.setter
    def added_tokens_decoder(self, value: dict[int, Any]) -> None:
        for index, token in value.items():
            self._set_added(int(index), token if isinstance(token, AddedToken) else AddedToken(str(token)))

    def _set_added(self, index: int, token: AddedToken) -> None:
        self._added_tokens_decoder[index] = token
        self._added_tokens_encoder[token.content] = index

    def get_added_vocab(self) -> dict[str, int]:
        """Return the id of every added token."""
        return self.added_tokens_encoder

    def __len__(self) -> int:
        size = self.vocab_size
        return size + sum(index >= size for index in self._added_tokens_decoder)

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        vocabulary = self.get_vocab()
        new = 0
        for given in new_tokens:
            if not isinstance(given, (str, AddedToken)):
                raise TypeError(f"a token is a text or an AddedToken, not {type(given)}: {given!r}")
            if not str(given) or str(given) in self._added_tokens_encoder:
                continue
            special = special_tokens or str(given) in self.all_special_tokens
            if isinstance(given, str):
                strips = self._strips_spaces
                token = AddedToken(given, special=special, lstrip=strips, rstrip=strips)
            else:
                token = given
                token.special = token.special or special_tokens
                token.single_word = token.single_word and not self._strips_spaces
            if not token.special and token.normalized and getattr(self, "do_lower_case", False):
                token.content = token.content.lower()
            index = vocabulary.get(token.content)
            if index is None:
                index = max(len(self), max(self._added_tokens_decoder, default=-1) + 1)
                new += 1
            if token.special and token.content not in self.all_special_tokens:
                self._additional_special_tokens.append(token)
            self._set_added(index, token)
        self._update_trie()
        return new

    def _update_trie(self, unique_no_split_tokens: Any = ()) -> None:
        for token in (*self._added_tokens_encoder, *unique_no_split_tokens):
            self.tokens_trie.add(str(token))

    def _create_trie(self, unique_no_split_tokens: Any) -> None:
        self._update_trie(unique_no_split_tokens)

    def prepare_for_tokenization(
        self,
        text: str,
        is_split_into_words: bool = False,  # noqa: ARG002 - for overrides
        **kwargs: Any,
    ) -> tuple[str, dict[str, Any]]:
        """Return the text to split, and the keywords that are left; for overrides."""
        return text, kwargs

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the tokens of a text: added tokens as they are, the rest as the subclass splits it."""
        keep_whole = not kwargs.pop("split_special_tokens", self.split_special_tokens)
        text, kwargs = self.prepare_for_tokenization(text, **kwargs)
        if getattr(self, "do_lower_case", False):
            text = self._lowered(text)
        if not keep_whole:
            return list(self._tokenize(text)) if text else []
        tokens: list[str] = []
        added = {name: self._added_tokens_decoder.get(i) for name, i in self._added_tokens_encoder.items()}
        for piece, whole in split_at(text, self.tokens_trie, added):
            if whole:
                tokens.append(piece)
            else:
                tokens.extend(self._tokenize(piece))
        return tokens

    def _lowered(self, text: str) -> str:
        kept = [re.escape(token) for token in self.all_special_tokens]
        kept += [
            re.escape(token.content)
            for token in self._added_tokens_decoder.values()
            if not token.special and token.normalized
        ]
        if not kept:
            return text.lower()
        pattern = f"({'|'.join(kept)})"
        pieces = re.split(pattern, text)
        return "".join(piece if place % 2 else piece.lower() for place, piece in enumerate(pieces))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} does not define _tokenize")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or a list of ids for a list."""
        if tokens is None:
            return None
        if isinstance(tokens, (str, bytes)):
            return self._convert_token_to_id_with_added_voc(tokens)
        return [self._convert_token_to_id_with_added_voc(token) for token in tokens]

    def _convert_token_to_id_with_added_voc(self, token: Any) -> Any:
        if token is None:
            return None
        if token in self._added_tokens_encoder:
            return self._added_tokens_encoder[token]
        return self._convert_token_to_id(token)

    def _convert_token_to_id(self, token: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define _convert_token_to_id")

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens for a list, without special ones where asked."""
        if isinstance(ids, int):
            added = self._added_tokens_decoder.get(ids)
            return added.content if added is not None else self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(index)) for index in ids if int(index) not in skipped]

    def _convert_id_to_token(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define _convert_id_to_token")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens; subclasses define how theirs are joined."""
        return " ".join(tokens)

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **_kwargs: Any,
    ) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        special = self.all_special_tokens
        apart = set(self._added_tokens_encoder) - set(special)
        apart |= {
            t for t in self.additional_special_tokens if self.convert_tokens_to_ids(t) >= self.vocab_size
        }
        texts: list[str] = []
        tokens = self.convert_ids_to_tokens(list(token_ids), skip_special_tokens=skip_special_tokens)
        # Added tokens are texts already; the tokens between them may be pieces of bytes and are joined together.
        for is_apart, run in itertools.groupby(tokens, key=lambda token: token in apart):
            pieces = list(run)
            texts += pieces if is_apart else filter(None, [self.convert_tokens_to_string(pieces)])
        text = (" " if spaces_between_special_tokens else "").join(texts)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text


def _is_whitespace(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char: str) -> bool:
    return char not in "\t\n\r" and unicodedata.category(char).startswith("C")


def _is_punctuation(char: str) -> bool:
    ascii_marks = (
        33 <= ord(char) <= 47 or 58 <= ord(char) <= 64 or 91 <= ord(char) <= 96 or 123 <= ord(char) <= 126
    )
    return ascii_marks or unicodedata.category(char).startswith("P")
