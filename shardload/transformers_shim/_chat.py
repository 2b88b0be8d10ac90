"""apply_chat_template: a conversation in the form that the model was trained on, as text or as ids."""

from __future__ import annotations

from typing import Any

from shardload.errors import UsageError
from shardload.transformers_shim._chat_template import render_chat_template


class ChatMixin:
    """A tokenizer's methods for conversations. A message is {"role": …, "content": …}."""

    chat_template: Any
    name_or_path: str
    special_tokens_map: dict[str, Any]

    @property
    def default_chat_template(self) -> Any:
        """The template of a repo without one: None."""
        return None

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Return the chat template: the given text, or the repo's own, chosen by name where it has several.

        Raises UsageError when there is none.
        """
        own = self.chat_template
        if isinstance(own, (list, tuple)):
            own = {entry["name"]: entry["template"] for entry in own}
        if isinstance(own, dict):
            if chat_template is not None:
                return str(own.get(chat_template, chat_template))
            own = own.get("tool_use") if tools and "tool_use" in own else own.get("default")
        found = chat_template if chat_template is not None else own
        if not found:
            raise UsageError(
                "the repo brings no chat template",
                where=self.name_or_path or None,
                cure="pass chat_template=…",
            )
        return str(found)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return a conversation (a list of messages, or several of them) as ids; as text with `tokenize=False`.

        The template is rendered in a process of its own that has nothing but these values, and limits of time and
        size: `render_chat_template` says what it raises. Further keywords are variables of the template.
        """
        if isinstance(
            conversation, str
        ):  # the order of releases before 4.42 was the same: messages come first
            raise UsageError("a conversation is a list of messages, not a text", where="apply_chat_template")
        template = self.get_chat_template(chat_template, tools)
        conversation = getattr(conversation, "messages", conversation)
        several = bool(conversation) and isinstance(conversation[0], (list, tuple))
        variables = {**self.special_tokens_map, **kwargs, "add_generation_prompt": add_generation_prompt}
        variables |= {"tools": tools, "documents": documents}
        texts = []
        for messages in conversation if several else [conversation]:
            text = render_chat_template(
                template, {**variables, "messages": list(messages)}, where=self.name_or_path or None
            )
            texts.append(_up_to_last_message(text, messages) if continue_final_message else text)
        rendered = texts if several else texts[0]
        if not tokenize:
            return rendered
        inputs = self(  # type: ignore[operator]
            rendered,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            # Tensors of ids are (rows, length) in transformers, for one conversation too.
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]


def _up_to_last_message(text: str, messages: Any) -> str:
    """Return the text up to the end of the last message's content, so that the model continues that message."""
    last = str(messages[-1]["content"]).strip()
    if last not in text:
        raise UsageError(
            "the template changes the last message, so that it can't be continued",
            where="continue_final_message",
        )
    return text[: text.rindex(last) + len(last)]
