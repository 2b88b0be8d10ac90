"""From texts to a model's inputs, for tokenizers written in Python."""

from __future__ import annotations

import itertools
from typing import Any

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._encoding import EncodingMixin
from shardload.transformers_shim._lengths import TruncationStrategy
from shardload.transformers_shim.utils.generic import PaddingStrategy

_AFTER_PADDING = ("pad_to_multiple_of", "return_attention_mask", "return_tensors")
_FOR_THE_MODEL = (
    *_AFTER_PADDING,
    "add_special_tokens",
    "max_length",
    "stride",
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_length",
    "verbose",
)


def _no_offsets(asked: bool) -> None:
    if asked:
        raise NotImplementedError(
            "offsets are known only to tokenizers of the tokenizers library (tokenizer.json)"
        )


class PythonEncodingMixin(EncodingMixin):
    """Texts become tokens, tokens become ids, and ids become rows, which are padded once all rows are there."""

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the tokens of a text."""
        raise NotImplementedError

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the ids of tokens."""
        raise NotImplementedError

    def _ids_of(self, text: Any, is_split_into_words: bool, **kwargs: Any) -> list[int]:
        """Return the ids of a text or of a list of words or tokens; a list of ids is returned as it is."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text, **kwargs))  # type: ignore[no-any-return]
        if isinstance(text, (list, tuple)) and all(isinstance(item, int) for item in text):
            return list(text)
        if isinstance(text, (list, tuple)) and all(isinstance(item, (str, bytes)) for item in text):
            if is_split_into_words:
                words = (self.tokenize(word, is_split_into_words=True, **kwargs) for word in text)
                text = list(itertools.chain(*words))
            return self.convert_tokens_to_ids(list(text))  # type: ignore[no-any-return]
        raise ValueError(f"a text must be a string, a list of strings or a list of ids, not {text!r:.80}")

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        is_split_into_words: bool = False,
        return_offsets_mapping: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        _no_offsets(return_offsets_mapping)
        options = {name: kwargs.pop(name) for name in _FOR_THE_MODEL if name in kwargs}
        ids = self._ids_of(text, is_split_into_words, **kwargs)
        pair = None if text_pair is None else self._ids_of(text_pair, is_split_into_words, **kwargs)
        return self.prepare_for_model(
            ids,
            pair_ids=pair,
            padding=padding_strategy.value,
            truncation=truncation_strategy.value,
            prepend_batch_axis=True,
            **options,
        )

    def _batch_encode_plus(
        self,
        batch_text_or_text_pairs: Any,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        is_split_into_words: bool = False,
        return_offsets_mapping: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        _no_offsets(return_offsets_mapping)
        options = {name: kwargs.pop(name) for name in _FOR_THE_MODEL if name in kwargs}
        after = {name: options.pop(name, None) for name in _AFTER_PADDING}
        rows: dict[str, list[Any]] = {}
        for item in batch_text_or_text_pairs:
            text, pair = item, None
            words = is_split_into_words and not (item and isinstance(item[0], (list, tuple)))
            if (
                isinstance(item, (list, tuple))
                and not words
                and len(item) == 2
                and not isinstance(item[0], int)
            ):
                text, pair = item
            row = self.prepare_for_model(
                self._ids_of(text, is_split_into_words, **kwargs),
                None if pair is None else self._ids_of(pair, is_split_into_words, **kwargs),
                padding=PaddingStrategy.DO_NOT_PAD.value,
                truncation=truncation_strategy.value,
                return_attention_mask=False,
                **options,
            )
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        padded = self.pad(
            rows,
            padding=padding_strategy.value,
            max_length=options.get("max_length"),
            pad_to_multiple_of=after["pad_to_multiple_of"],
            return_attention_mask=after["return_attention_mask"],
        )
        return BatchEncoding(padded, tensor_type=after["return_tensors"])
