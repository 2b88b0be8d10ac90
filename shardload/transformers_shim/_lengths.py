"""Padding and truncation: a caller's options, and how ids are padded and cut."""

from __future__ import annotations

import inspect
from typing import Any

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._missing import later
from shardload.transformers_shim.utils.generic import ExplicitEnum, PaddingStrategy

NO_LIMIT = 10**20
"""A `model_max_length` of at least this means that the repo names none."""


class TruncationStrategy(ExplicitEnum):
    """Which sequences of a pair that is too long are cut."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


class LengthsMixin:
    """A tokenizer's methods for lengths."""

    model_input_names: list[str]
    model_max_length: int
    padding_side: str
    truncation_side: str
    pad_token: Any
    pad_token_id: Any
    pad_token_type_id: int

    def _get_padding_truncation_strategies(
        self,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        verbose: bool = True,  # noqa: ARG002 - the old signature
        **kwargs: Any,
    ) -> tuple[PaddingStrategy, TruncationStrategy, int | None, dict[str, Any]]:
        """Return (padding, truncation, max_length, the other keywords) of a call, in its old forms too."""
        truncation = _truncation(truncation, padding, max_length, kwargs.pop("truncation_strategy", None))
        padding_strategy = _padding(padding, kwargs.pop("pad_to_max_length", False), max_length)
        limit = self.model_max_length if self.model_max_length < NO_LIMIT else None
        if max_length is None:
            if padding_strategy is PaddingStrategy.MAX_LENGTH and limit is None:
                padding_strategy = PaddingStrategy.DO_NOT_PAD
            if truncation is not TruncationStrategy.DO_NOT_TRUNCATE and limit is None:
                truncation = TruncationStrategy.DO_NOT_TRUNCATE
            if (
                padding_strategy is PaddingStrategy.MAX_LENGTH
                or truncation is not TruncationStrategy.DO_NOT_TRUNCATE
            ):
                max_length = limit
        pads = padding_strategy is not PaddingStrategy.DO_NOT_PAD
        if pads and (self.pad_token is None or self.pad_token_id is None or self.pad_token_id < 0):
            raise ValueError(
                "the tokenizer has no padding token: set tokenizer.pad_token, for example to eos_token"
            )
        cuts = truncation is not TruncationStrategy.DO_NOT_TRUNCATE
        if cuts and pads and pad_to_multiple_of and max_length and max_length % pad_to_multiple_of:
            raise ValueError(f"max_length={max_length} is not a multiple of {pad_to_multiple_of}")
        return padding_strategy, truncation, max_length, kwargs

    def pad(
        self,
        encoded_inputs: Any,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        verbose: bool = True,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Pad one row, a batch (a dictionary of lists), or a list of rows, to one length."""
        self._refuse_other_side(padding_side)
        if isinstance(encoded_inputs, (list, tuple)):
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in encoded_inputs[0]}
        name = self.model_input_names[0]
        if name not in encoded_inputs:
            raise ValueError(f"there is no {name!r} to pad, only {list(encoded_inputs)}")
        encoded_inputs = {key: _plain(value) for key, value in encoded_inputs.items()}
        rows = encoded_inputs[name]
        if rows is None or len(rows) == 0:
            if return_attention_mask:
                encoded_inputs["attention_mask"] = []
            return BatchEncoding(encoded_inputs, tensor_type=return_tensors)
        strategy, _, max_length, _ = self._get_padding_truncation_strategies(
            padding, max_length=max_length, verbose=verbose
        )
        options = {
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_attention_mask": return_attention_mask,
        }
        if not isinstance(rows[0], (list, tuple)):
            one = self._pad_with(encoded_inputs, max_length, strategy, options)
            return BatchEncoding(one, tensor_type=return_tensors)
        if strategy is PaddingStrategy.LONGEST:
            # An override does not see the batch: its length is decided before the call.
            max_length, strategy = max(len(row) for row in rows), PaddingStrategy.MAX_LENGTH
        padded: dict[str, list[Any]] = {}
        for place in range(len(rows)):
            row = {key: value[place] for key, value in encoded_inputs.items()}
            for key, value in self._pad_with(row, max_length, strategy, options).items():
                padded.setdefault(key, []).append(value)
        return BatchEncoding(padded, tensor_type=return_tensors)

    def _refuse_other_side(self, side: str | None) -> None:
        """Raise UnsupportedError for a side other than the tokenizer's own: overrides of `_pad` know only that."""
        if side not in (None, self.padding_side):
            later(f"padding_side={side!r} of one call", f"set tokenizer.padding_side = {side!r}")

    def _pad_with(
        self, row: dict[str, Any], max_length: int | None, strategy: PaddingStrategy, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Call `_pad` with the keywords that it takes: overrides of different ages differ, and none needs a side."""
        accepted = inspect.signature(self._pad).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
            options = {name: value for name, value in options.items() if name in accepted}
        return self._pad(row, max_length=max_length, padding_strategy=strategy, **options)

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        padding_side: str | None = None,
    ) -> dict[str, Any]:
        """Pad one row to `max_length` on the tokenizer's `padding_side`."""
        self._refuse_other_side(padding_side)
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        name = self.model_input_names[0]
        ids = encoded_inputs[name]
        if padding_strategy == PaddingStrategy.LONGEST:
            max_length = len(ids)
        if max_length is not None and pad_to_multiple_of:
            max_length = -(-max_length // pad_to_multiple_of) * pad_to_multiple_of
        if return_attention_mask and "attention_mask" not in encoded_inputs:
            encoded_inputs["attention_mask"] = [1] * len(ids)
        if padding_strategy == PaddingStrategy.DO_NOT_PAD or max_length is None or len(ids) >= max_length:
            return encoded_inputs  # type: ignore[no-any-return]
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {self.padding_side!r}, neither 'left' nor 'right'")
        fillers = {
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
            name: self.pad_token_id,
        }
        for key, filler in fillers.items():
            if key in encoded_inputs and (key != "attention_mask" or return_attention_mask):
                padding = [filler] * (max_length - len(ids))
                row = list(encoded_inputs[key])
                encoded_inputs[key] = padding + row if self.padding_side == "left" else row + padding
        return encoded_inputs  # type: ignore[no-any-return]

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Return (ids, pair ids, what was cut off with `stride` ids more), cut on `truncation_side`."""
        strategy = TruncationStrategy(truncation_strategy)
        if num_tokens_to_remove <= 0 or strategy is TruncationStrategy.DO_NOT_TRUNCATE:
            return ids, pair_ids, []
        if strategy is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
            first, second = len(ids), len(pair_ids)
            for _ in range(num_tokens_to_remove):
                if first > second:
                    first -= 1
                else:
                    second -= 1
            return self._cut(ids, first), self._cut(pair_ids, second), []
        if strategy is TruncationStrategy.ONLY_SECOND and pair_ids is not None:
            kept = len(pair_ids) - num_tokens_to_remove
            if kept <= 0:
                return ids, pair_ids, []
            return ids, self._cut(pair_ids, kept), self._cut_off(pair_ids, num_tokens_to_remove + stride)
        kept = len(ids) - num_tokens_to_remove
        if kept <= 0:
            return ids, pair_ids, []
        return self._cut(ids, kept), pair_ids, self._cut_off(ids, num_tokens_to_remove + stride)

    def _cut(self, ids: list[int], length: int) -> list[int]:
        length = max(length, 0)
        return ids[len(ids) - length :] if self.truncation_side == "left" else ids[:length]

    def _cut_off(self, ids: list[int], length: int) -> list[int]:
        length = min(length, len(ids))
        return ids[:length] if self.truncation_side == "left" else ids[len(ids) - length :]


def _padding(padding: Any, pad_to_max_length: bool, max_length: int | None) -> PaddingStrategy:
    if padding is False or padding is None:
        return PaddingStrategy.MAX_LENGTH if pad_to_max_length and max_length else PaddingStrategy.DO_NOT_PAD
    return PaddingStrategy.LONGEST if padding is True else PaddingStrategy(padding)


def _truncation(truncation: Any, padding: Any, max_length: int | None, old_name: Any) -> TruncationStrategy:
    if truncation is None and old_name is not None:
        truncation = old_name
    if truncation is None:
        # In transformers a length alone means truncation to it.
        cuts = max_length is not None and padding in (False, None)
        return TruncationStrategy.LONGEST_FIRST if cuts else TruncationStrategy.DO_NOT_TRUNCATE
    if isinstance(truncation, bool):
        return TruncationStrategy.LONGEST_FIRST if truncation else TruncationStrategy.DO_NOT_TRUNCATE
    return TruncationStrategy(truncation)


def _plain(value: Any) -> Any:
    """Return a tensor as lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") and not hasattr(value, "__array_interface__") else value
