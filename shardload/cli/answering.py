"""How a model answers: by the repo's own `stream_chat` or `chat`, or by its chat template and `generate`."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, Protocol

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NEW_TOKENS = 1024
"""The most tokens of an answer, where neither the caller nor the repo sets a limit."""


class Stop:
    """A stopping criterion: generation stops once `wanted` is set."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, *_args: Any, **_kwargs: Any) -> bool:
        """Return whether to stop."""
        return self.wanted


class Answering(Protocol):
    """One way to answer. `show` is called with the whole answer so far each time it grows."""

    name: str

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Answer and remember the turn."""

    def reset(self) -> None:
        """Forget all turns."""


def choose_answering(
    model: Any, tokenizer: Any, settings: dict[str, Any], *, system: str | None = None, raw: bool = False
) -> Answering:
    """Return how this model answers: raw text if asked, the repo's own method if it has one, else its template.

    Raises UsageError where there is none of these, or where it takes no system prompt and one is given.
    """
    if raw:
        return Raw(model, tokenizer, settings)
    if callable(getattr(model, "stream_chat", None)):
        return OwnStream(model, tokenizer, settings, system)
    if getattr(tokenizer, "chat_template", None):
        return Template(model, tokenizer, settings, system)
    names = _names(getattr(model, "chat", None))
    if {"messages", "stream"} <= names:
        return OwnMessages(model, tokenizer, settings, system)
    if {"query", "history"} <= names:
        return OwnChat(model, tokenizer, settings, system)
    raise UsageError(
        f"{type(model).__name__} has no stream_chat, and its tokenizer has no chat template",
        cure="pass --raw to let it continue the text as it is",
    )


class _Way:
    def __init__(
        self, model: Any, tokenizer: Any, settings: dict[str, Any], system: str | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.system = system
        self.history: list[Any] = []

    def reset(self) -> None:
        self.history = []

    def _keywords(self, function: Any, stop: Stop) -> dict[str, Any]:
        """Return the keywords for a method of the repo: settings, stopping criterion, system prompt."""
        names, takes_any = _names(function), _takes_any(function)
        found = dict(self.settings)
        if "generation_config" in names and not takes_any:
            found = {"generation_config": self._config()}
        unknown = [] if takes_any else [name for name in found if name not in names]
        if unknown:
            raise UsageError(f"the repo's {function.__name__} takes no {', '.join(unknown)}")
        if self.system is not None:
            place = next((name for name in ("system", "meta_instruction") if name in names), None)
            if place is None:
                raise UsageError(f"the repo's {function.__name__} takes no system prompt", where="--system")
            found[place] = self.system
        if takes_any or "stopping_criteria" in names:
            found["stopping_criteria"] = _criteria(self.model, stop)
        return found

    def _config(self) -> Any:
        config = copy.deepcopy(self.model.generation_config)
        for name, value in self.settings.items():
            setattr(config, name, value)
        return config


class OwnStream(_Way):
    """`stream_chat(tokenizer, query, history=…)`: yields (answer so far, history)."""

    name = "the repo's stream_chat"

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Answer and remember the turn."""
        own = self.model.stream_chat
        stream = own(self.tokenizer, query, history=copy.deepcopy(self.history), **self._keywords(own, stop))
        # A stream that another thread feeds is read to its end even after a stop: that thread waits for a reader.
        for item in stream:
            answer = item[0] if isinstance(item, tuple) else item
            if stop.wanted:
                continue
            if isinstance(item, tuple) and len(item) > 1:
                self.history = list(item[1])
            show(answer if isinstance(answer, str) else str(answer))


class Template(_Way):
    """The tokenizer's chat template, then `generate`."""

    name = "the chat template"

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Answer and remember the turn."""
        start = [{"role": "system", "content": self.system}] if self.system is not None else []
        asked = [*self.history, {"role": "user", "content": query}]
        inputs = self.tokenizer.apply_chat_template(
            [*start, *asked], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = _Streamer(self.tokenizer, show)
        try:
            _generate(self.model, inputs["input_ids"], self.tokenizer, streamer, self.settings, stop)
        finally:
            if streamer.text:
                self.history = [*asked, {"role": "assistant", "content": streamer.text}]


class Raw(_Way):
    """`generate` on the text as it is, without a history."""

    name = "generate, from the text as it is"

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Continue the text."""
        ids = self.tokenizer(query, return_tensors="pt")["input_ids"]
        _generate(self.model, ids, self.tokenizer, _Streamer(self.tokenizer, show), self.settings, stop)


class OwnMessages(_Way):
    """`chat(tokenizer, messages, stream=True)`: an iterator over the answer so far."""

    name = "the repo's chat, streaming"

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Answer and remember the turn."""
        system, self.system = self.system, None  # it goes into the messages
        try:
            keywords = self._keywords(self.model.chat, stop)
        finally:
            self.system = system
        start = [{"role": "system", "content": system}] if system is not None else []
        asked = [*self.history, {"role": "user", "content": query}]
        answer = ""
        for item in self.model.chat(self.tokenizer, [*start, *asked], stream=True, **keywords):
            if not stop.wanted:
                answer = str(item)
                self.history = [*asked, {"role": "assistant", "content": answer}]
                show(answer)


class OwnChat(_Way):
    """`chat(tokenizer, query, history=…)`: the whole answer at once, or as it grows where it takes a streamer."""

    name = "the repo's chat"

    def answer(self, query: str, show: Callable[[str], None], stop: Stop) -> None:
        """Answer and remember the turn."""
        own = self.model.chat
        keywords = self._keywords(own, stop)
        if _takes_any(own) or "streamer" in _names(own):
            keywords["streamer"] = _Streamer(self.tokenizer, show)
        answer, history = own(self.tokenizer, query, history=copy.deepcopy(self.history), **keywords)
        if not stop.wanted:
            self.history = list(history)
            show(str(answer))


class _Streamer:
    """Takes tokens from `generate` and shows the text so far. The first tokens are the prompt."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._show = show
        self._ids: list[int] = []
        self._prompt_is_next = True

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._ids += value.reshape(-1).tolist()
        text = str(self.tokenizer.decode(self._ids, skip_special_tokens=True))
        # Half a character waits for its other half.
        self.text = text.rstrip("\ufffd")
        self._show(self.text)

    def end(self) -> None:
        self._prompt_is_next = True


def _generate(
    model: Any, ids: Any, tokenizer: Any, streamer: _Streamer, settings: dict[str, Any], stop: Stop
) -> None:
    import torch

    config = getattr(model, "generation_config", None)
    ids = ids.to(next(model.parameters()).device)
    keywords = {"streamer": streamer, "attention_mask": torch.ones_like(ids), **settings}
    if "max_new_tokens" not in settings:
        keywords["max_new_tokens"] = getattr(config, "max_new_tokens", None) or MAX_NEW_TOKENS
    if getattr(config, "eos_token_id", None) is None and tokenizer.eos_token_id is not None:
        keywords["eos_token_id"] = tokenizer.eos_token_id
    model.generate(ids, stopping_criteria=_criteria(model, stop), **keywords)


def _criteria(model: Any, stop: Stop) -> Any:
    """Return a list of stopping criteria, of the library that the model's class comes from."""
    if any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        import transformers

        return transformers.StoppingCriteriaList([stop])
    from shardload.transformers_shim.generation import StoppingCriteriaList

    return StoppingCriteriaList([stop])


def _names(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) if callable(function) else set()


def _takes_any(function: Any) -> bool:
    kinds = (parameter.kind for parameter in inspect.signature(function).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds
