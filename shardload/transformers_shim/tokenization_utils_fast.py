"""`transformers.tokenization_utils_fast`: tokenizer.json through the tokenizers library."""

from __future__ import annotations

import json
import threading
from typing import Any

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._lengths import TruncationStrategy
from shardload.transformers_shim._missing import refuse_unknown
from shardload.transformers_shim.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase
from shardload.transformers_shim.utils.generic import PaddingStrategy

__all__ = ["PreTrainedTokenizerFast"]


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """A tokenizer that splits and decodes as tokenizer.json describes."""

    vocab_files_names: dict[str, str] = {"tokenizer_file": "tokenizer.json"}  # noqa: RUF012 - the library's own
    can_save_slow_tokenizer = False

    def __init__(
        self,
        *_vocabulary: Any,
        tokenizer_object: Any = None,
        tokenizer_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._lock = threading.Lock()
        self._tokenizer: Any = _backend(tokenizer_object, tokenizer_file)
        added = kwargs.pop("added_tokens_decoder", None) or {}
        super().__init__(**{"clean_up_tokenization_spaces": True, **kwargs})
        # Truncation and padding are the caller's choice, whatever the file has.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = self._tokenizer.get_added_tokens_decoder()
        listed = [token for index, token in sorted(added.items()) if index not in known]
        self._tokenizer.add_tokens([_native(token) for token in listed])

    def _constructed(self) -> None:
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        missing = [token for token in self.all_special_tokens_extended if str(token) not in known]
        if missing:
            self._add_tokens(missing, special_tokens=True)

    @property
    def is_fast(self) -> bool:
        """Always True."""
        return True

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizers.Tokenizer."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of ids in the vocabulary, without added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id, added tokens too."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Every added token by its id."""
        return {index: _own(token) for index, token in self._tokenizer.get_added_tokens_decoder().items()}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The id of every added token."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Return the id of every added token."""
        return self.added_tokens_encoder

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        native = [_native(token) for token in new_tokens]
        if special_tokens:
            return int(self._tokenizer.add_special_tokens(native))
        return int(self._tokenizer.add_tokens(native))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens are added to a text (or a pair)."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **_kwargs: Any
    ) -> list[str]:
        """Return the tokens of a text."""
        return list(self._tokenizer.encode(text, pair, add_special_tokens=add_special_tokens).tokens)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token (the unknown token's for other texts), or a list of ids."""
        if tokens is None or not isinstance(tokens, str):
            return None if tokens is None else [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._tokenizer.token_to_id(tokens)
        return index if index is not None or tokens == self.unk_token else self.unk_token_id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._tokenizer.id_to_token(int(index)) for index in ids if int(index) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens."""
        decoder = self._tokenizer.decoder
        return str(decoder.decode(tokens)) if decoder is not None else " ".join(tokens)

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_kwargs: Any,
    ) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        if _is_ids(text):
            return self._from_ids(text, text_pair, kwargs)
        tensors = kwargs.pop("return_tensors", None)
        batch = self._batch_encode_plus([text if text_pair is None else (text, text_pair)], **kwargs)
        rows = {name: value[0] for name, value in batch.items()}
        return BatchEncoding(
            rows, batch.encodings, tensor_type=tensors, prepend_batch_axis=True, n_sequences=batch.n_sequences
        )

    def _from_ids(self, ids: Any, pair: Any, kwargs: dict[str, Any]) -> BatchEncoding:
        options = {
            name: value
            for name, value in kwargs.items()
            if name not in ("is_split_into_words", "return_offsets_mapping")
        }
        padding, truncation = options.pop("padding_strategy"), options.pop("truncation_strategy")
        options.update(padding=padding.value, truncation=truncation.value, add_special_tokens=False)
        return self.prepare_for_model(list(ids), pair, prepend_batch_axis=True, **options)

    def _batch_encode_plus(
        self,
        batch_text_or_text_pairs: Any,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        refuse_unknown("tokenizer(…)", kwargs, ("verbose",))
        batch = [
            tuple(item) if _is_pair(item, is_split_into_words) else item for item in batch_text_or_text_pairs
        ]
        with self._lock:  # truncation is a state of the library's tokenizer
            if truncation_strategy is not TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
                self._tokenizer.enable_truncation(
                    max_length,
                    stride=stride,
                    strategy=truncation_strategy.value,
                    direction=self.truncation_side,
                )
            try:
                encodings = self._tokenizer.encode_batch(
                    batch, add_special_tokens=add_special_tokens, is_pretokenized=is_split_into_words
                )
            finally:
                self._tokenizer.no_truncation()
        rows: dict[str, Any] = {self.model_input_names[0]: [encoding.ids for encoding in encodings]}
        if return_token_type_ids or (
            return_token_type_ids is None and "token_type_ids" in self.model_input_names
        ):
            rows["token_type_ids"] = [encoding.type_ids for encoding in encodings]
        if return_special_tokens_mask:
            rows["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in encodings]
        if return_attention_mask or (
            return_attention_mask is None and "attention_mask" in self.model_input_names
        ):
            rows["attention_mask"] = [encoding.attention_mask for encoding in encodings]
        padded: Any = rows
        if padding_strategy is not PaddingStrategy.DO_NOT_PAD:
            padded = self.pad(
                rows, padding_strategy.value, max_length, pad_to_multiple_of, return_attention_mask
            )
        if return_offsets_mapping:
            padded["offset_mapping"] = [encoding.offsets for encoding in encodings]
        if return_length:
            padded["length"] = [len(row) for row in padded[self.model_input_names[0]]]
        pairs = 2 if batch and isinstance(batch[0], tuple) else 1
        return BatchEncoding(padded, encodings, tensor_type=return_tensors, n_sequences=pairs)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write tokenizer.json into a folder and return its name."""
        path = f"{save_directory}/{filename_prefix + '-' if filename_prefix else ''}tokenizer.json"
        self._tokenizer.save(path)
        return (path,)

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name != "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


def _backend(tokenizer_object: Any, tokenizer_file: str | None) -> Any:
    import tokenizers

    if tokenizer_object is not None:
        return tokenizers.Tokenizer.from_str(tokenizer_object.to_str())
    if tokenizer_file is None:
        raise ValueError("a tokenizer of this class is made from tokenizer.json: pass tokenizer_file=…")
    return tokenizers.Tokenizer.from_file(tokenizer_file)


def _native(token: Any) -> Any:
    import tokenizers

    if not isinstance(token, AddedToken):
        return str(token)
    state = json.loads(json.dumps(token.__getstate__()))
    return tokenizers.AddedToken(state.pop("content"), **state)


def _own(token: Any) -> AddedToken:
    names = ("content", "single_word", "lstrip", "rstrip", "special", "normalized")
    return AddedToken(**{name: getattr(token, name) for name in names})


def _is_ids(text: Any) -> bool:
    return isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], int)


def _is_pair(item: Any, words: bool) -> bool:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        return False
    return isinstance(item[0], (list, tuple)) if words else isinstance(item[0], str)
