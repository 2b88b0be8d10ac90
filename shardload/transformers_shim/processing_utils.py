"""`transformers.processing_utils`, in part: the base of processors, and types of keyword arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Unpack

from shardload.transformers_shim._missing import not_served

if TYPE_CHECKING:
    import os

__all__ = ["ProcessorMixin", "Unpack"]


class ProcessorMixin:
    """The base of processors: a tokenizer, and what prepares images or sound, under the names in `attributes`."""

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]
    optional_attributes: ClassVar[list[str]] = ["chat_template"]
    feature_extractor_class: Any = None
    tokenizer_class: Any = None
    chat_template: Any = None
    _auto_class: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in self.optional_attributes:
            setattr(self, name, kwargs.pop(name, getattr(self, name, None)))
        given = {**dict(zip(self.attributes, args, strict=False)), **kwargs}
        if len(args) > len(self.attributes) or given.keys() != set(self.attributes):
            raise TypeError(
                f"{type(self).__name__} is made of {', '.join(self.attributes)}, not of {', '.join(given)}"
            )
        for name, part in given.items():
            setattr(self, name, part)

    @property
    def model_input_names(self) -> list[str]:
        """The names of the first part's outputs."""
        return list(getattr(self, self.attributes[0]).model_input_names)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the texts of rows of ids, by the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)  # type: ignore[attr-defined]

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the text of ids, by the tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)  # type: ignore[attr-defined]

    def apply_chat_template(self, conversation: Any, chat_template: Any = None, **kwargs: Any) -> Any:
        """Return the text of a conversation, or its ids with `tokenize=True`, by the tokenizer."""
        template = chat_template if chat_template is not None else self.chat_template
        options = {"tokenize": False, **kwargs}
        return self.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            conversation, chat_template=template, **options
        )

    @classmethod
    def from_pretrained(cls, where: str | os.PathLike[str], **_options: Any) -> Any:
        """Refuse: `shardload.load_processor` makes processors, and asks for consent."""
        raise not_served(f"{cls.__name__}.from_pretrained({str(where)!r})")

    def save_pretrained(self, folder: str | os.PathLike[str], **_options: Any) -> None:
        """Write the files of every part into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in self.attributes:
            getattr(self, name).save_pretrained(folder)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Record the auto class that this class belongs to."""
        cls._auto_class = auto_class
