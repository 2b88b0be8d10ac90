"""`transformers.generation.streamers`: text as it is generated."""

from __future__ import annotations

from queue import Queue
from typing import Any


class BaseStreamer:
    """Receives tokens as they are generated; subclasses define `put` and `end`."""

    def put(self, value: Any) -> None:
        """Receive new tokens: first the prompt, (batch, length), then each step's, (batch,)."""
        raise NotImplementedError

    def end(self) -> None:
        """Receive the end of the generation."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints text as soon as it is complete: at line ends, after spaces, and after each CJK character."""

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.token_cache: list[int] = []
        self.print_len = 0
        self.next_tokens_are_prompt = True

    def put(self, value: Any) -> None:
        """Receive new tokens and pass on the text that is complete; raises ValueError for several sequences."""
        if value.dim() > 1 and value.shape[0] > 1:
            raise ValueError(f"{type(self).__name__} streams one sequence, not {value.shape[0]}")
        if value.dim() > 1:
            value = value[0]
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.token_cache.extend(value.tolist())
        text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
        if text.endswith("\n"):
            whole = text[self.print_len :]
            self.token_cache, self.print_len = [], 0
        else:
            # The letters of a word may still change with the next token; a CJK character does not.
            end = len(text) if text and _is_cjk(text[-1]) else text.rfind(" ") + 1
            whole = text[self.print_len : end]
            self.print_len += len(whole)
        self.on_finalized_text(whole)

    def end(self) -> None:
        """Pass on the rest, and start over."""
        text = ""
        if self.token_cache:
            text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[self.print_len :]
        self.token_cache, self.print_len = [], 0
        self.next_tokens_are_prompt = True
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print text, with a line end after the last."""
        print(text, flush=True, end="\n" if stream_end else "")  # noqa: T201 - a streamer prints

    def _is_chinese_char(self, cp: int) -> bool:
        return _is_cjk(chr(cp))


class TextIteratorStreamer(TextStreamer):
    """An iterator over the text that `generate` makes in another thread.

    `timeout` is the longest wait in seconds for a piece of text: queue.Empty after that. When `generate` fails,
    iteration raises its error.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: Queue[Any] = Queue()
        self.stop_signal: Any = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue text, and after the last the end of the iteration."""
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the iterating thread, after the text that is queued."""
        self.text_queue.put(error)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopIteration
        return str(value)


# The blocks of CJK ideographs; Kana and Hangul are treated as letters of words.
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _CJK)
