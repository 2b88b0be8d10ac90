"""A tokenizer's methods from text to a model's inputs and back, except for the splitting of text."""

from __future__ import annotations

from typing import Any

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._lengths import LengthsMixin, TruncationStrategy
from shardload.transformers_shim.utils.generic import PaddingStrategy


class EncodingMixin(LengthsMixin):
    """A tokenizer's calls. Texts are strings, lists of words with `is_split_into_words`, or lists of ids."""

    all_special_ids: list[int]
    clean_up_tokenization_spaces: bool

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        is_split_into_words: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Return the inputs for one text or a list of texts (or pairs), padded, cut and as tensors where asked."""
        if text is None and text_target is None:
            raise ValueError("there is nothing to encode: pass text= or text_target=")
        options = {"is_split_into_words": is_split_into_words, **kwargs}
        encodings = self._call_one(text, text_pair, options) if text is not None else None
        if text_target is None:
            assert encodings is not None
            return encodings
        self._switch_to_target_mode()
        try:
            targets = self._call_one(text_target, text_pair_target, options)
        finally:
            self._switch_to_input_mode()
        if encodings is None:
            return targets
        encodings["labels"] = targets["input_ids"]
        return encodings

    def _switch_to_input_mode(self) -> None:
        raise NotImplementedError

    def _switch_to_target_mode(self) -> None:
        raise NotImplementedError

    def _call_one(self, text: Any, text_pair: Any, options: dict[str, Any]) -> BatchEncoding:
        words = options["is_split_into_words"]
        if isinstance(text, (list, tuple)):
            batched = bool(text) and isinstance(text[0], (list, tuple)) if words else True
        elif isinstance(text, str):
            batched = False
        else:
            raise TypeError(
                f"a text must be a string or a list of strings (of words, of pairs), not {type(text)}"
            )
        if not batched:
            return self.encode_plus(text, text_pair, **options)
        if text_pair is not None and (isinstance(text_pair, str) or len(text_pair) != len(text)):
            raise ValueError("text and text_pair must be lists of one length")
        batch = list(text) if text_pair is None else list(zip(text, text_pair, strict=True))
        return self.batch_encode_plus(batch, **options)

    def encode(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        """Return the ids of one text, special tokens included unless `add_special_tokens=False`."""
        return self.encode_plus(text, text_pair=text_pair, **kwargs)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        """Return the inputs for one text."""
        return self._encode_plus(text=text, text_pair=text_pair, **self._settled(kwargs))

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **kwargs: Any) -> BatchEncoding:
        """Return the inputs for a list of texts, or of pairs."""
        return self._batch_encode_plus(
            batch_text_or_text_pairs=batch_text_or_text_pairs, **self._settled(kwargs)
        )

    def _settled(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords with padding and truncation as strategies."""
        names = ("padding", "truncation", "max_length", "pad_to_multiple_of", "verbose")
        asked = {name: kwargs.pop(name) for name in names if name in kwargs}
        asked.update({n: kwargs.pop(n) for n in ("truncation_strategy", "pad_to_max_length") if n in kwargs})
        padding, truncation, max_length, _ = self._get_padding_truncation_strategies(**asked)
        self._refuse_other_side(kwargs.pop("padding_side", None))
        return {
            **kwargs,
            "padding_strategy": padding,
            "truncation_strategy": truncation,
            "max_length": max_length,
            "pad_to_multiple_of": asked.get("pad_to_multiple_of"),
        }

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        raise NotImplementedError

    def _batch_encode_plus(self, batch_text_or_text_pairs: Any, **kwargs: Any) -> BatchEncoding:
        raise NotImplementedError

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        prepend_batch_axis: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Return the inputs for the ids of one text (or pair): with special tokens, truncated and padded."""
        strategy, cut, max_length, _ = self._get_padding_truncation_strategies(
            padding, truncation, max_length, pad_to_multiple_of, **kwargs
        )
        if return_token_type_ids is None:
            return_token_type_ids = "token_type_ids" in self.model_input_names
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        found: dict[str, Any] = {}
        extra = self.num_special_tokens_to_add(pair=pair_ids is not None) if add_special_tokens else 0
        too_many = len(ids) + len(pair_ids or ()) + extra - max_length if max_length is not None else 0
        overflow: list[int] = []
        if cut is not TruncationStrategy.DO_NOT_TRUNCATE and too_many > 0:
            ids, pair_ids, overflow = self.truncate_sequences(ids, pair_ids, too_many, cut, stride)
        if return_overflowing_tokens:
            found |= {"overflowing_tokens": overflow, "num_truncated_tokens": too_many}
        if add_special_tokens:
            sequence = self.build_inputs_with_special_tokens(ids, pair_ids)
            types = self.create_token_type_ids_from_sequences(ids, pair_ids)
            mask = self.get_special_tokens_mask(ids, pair_ids) if return_special_tokens_mask else []
        else:
            sequence = ids + pair_ids if pair_ids else ids
            types = [0] * len(ids) + [1] * len(pair_ids or ())
            mask = [0] * len(sequence)
        found[self.model_input_names[0]] = sequence
        if return_token_type_ids:
            found["token_type_ids"] = types
        if return_special_tokens_mask:
            found["special_tokens_mask"] = mask
        row: Any = found
        if strategy is not PaddingStrategy.DO_NOT_PAD or return_attention_mask:
            row = self.pad(
                found,
                padding=strategy.value,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                return_attention_mask=return_attention_mask,
            )
        if return_length:
            row["length"] = len(row[self.model_input_names[0]])
        return BatchEncoding(row, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens are added to a text (or a pair)."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the ids of a text (or pair) with its special tokens; here without any, as subclasses add them."""
        return token_ids_0 if token_ids_1 is None else token_ids_0 + token_ids_1

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for the ids of the first text and 1 for those of the second."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or ())

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token among ids that have them already; otherwise a 0 for each id."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(token in special) for token in token_ids_0]
        return [0] * (len(token_ids_0) + len(token_ids_1 or ()))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of ids (a number, a list or a tensor)."""
        if hasattr(token_ids, "tolist"):
            token_ids = token_ids.tolist()
        return self._decode(
            token_ids=token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Return the text of each row of ids."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **kwargs) for row in sequences]

    def _decode(self, token_ids: Any, **kwargs: Any) -> str:
        raise NotImplementedError

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Return the text without the spaces that word tokenizers put before English punctuation."""
        for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            out_string = out_string.replace(mark, mark.strip())
        return out_string
