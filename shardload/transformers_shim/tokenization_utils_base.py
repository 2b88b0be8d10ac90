"""`transformers.tokenization_utils_base`: the base class of all tokenizers, in Python or of the tokenizers library."""

from __future__ import annotations

import abc
import contextlib
import copy
from typing import TYPE_CHECKING, Any

from shardload.transformers_shim._batch_encoding import BatchEncoding
from shardload.transformers_shim._chat import ChatMixin
from shardload.transformers_shim._encoding import EncodingMixin
from shardload.transformers_shim._lengths import TruncationStrategy
from shardload.transformers_shim._special_tokens import AddedToken, SpecialTokensMixin
from shardload.transformers_shim._tokenizer_files import FilesMixin
from shardload.transformers_shim.utils.generic import ExplicitEnum, PaddingStrategy, TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ADDED_TOKENS_FILE",
    "ENCODE_KWARGS_DOCSTRING",
    "ENCODE_PLUS_ADDITIONAL_KWARGS_DOCSTRING",
    "FULL_TOKENIZER_FILE",
    "INIT_TOKENIZER_DOCSTRING",
    "LARGE_INTEGER",
    "SPECIAL_TOKENS_MAP_FILE",
    "TOKENIZER_CONFIG_FILE",
    "VERY_LARGE_INTEGER",
    "AddedToken",
    "BatchEncoding",
    "EncodedInput",
    "EncodedInputPair",
    "ExplicitEnum",
    "PaddingStrategy",
    "PreTokenizedInput",
    "PreTokenizedInputPair",
    "PreTrainedTokenizerBase",
    "SpecialTokensMixin",
    "TensorType",
    "TextInput",
    "TextInputPair",
    "TruncationStrategy",
]

# Decorators in old code add these to docstrings.
ENCODE_KWARGS_DOCSTRING = ENCODE_PLUS_ADDITIONAL_KWARGS_DOCSTRING = INIT_TOKENIZER_DOCSTRING = ""

VERY_LARGE_INTEGER = int(1e30)
LARGE_INTEGER = int(1e20)
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
FULL_TOKENIZER_FILE = "tokenizer.json"

TextInput = str
PreTokenizedInput = list[str]
EncodedInput = list[int]
TextInputPair = tuple[str, str]
PreTokenizedInputPair = tuple[list[str], list[str]]
EncodedInputPair = tuple[list[int], list[int]]


class _Tokenizers(abc.ABCMeta):
    """Looks up the special tokens when the whole constructor has run, the subclass's part included.

    Old code calls the base constructor before it has a vocabulary, newer code after. Looking up nothing before the end
    serves both.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        tokenizer = super().__call__(*args, **kwargs)
        tokenizer._constructed()
        return tokenizer


class PreTrainedTokenizerBase(
    ChatMixin, FilesMixin, EncodingMixin, SpecialTokensMixin, metaclass=_Tokenizers
):
    """Options, special tokens, and the methods from text to a model's inputs and back."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012 - the library's own class attributes, replaced by subclasses
    pretrained_vocab_files_map: dict[str, Any] = {}  # noqa: RUF012
    pretrained_init_configuration: dict[str, Any] = {}  # noqa: RUF012
    max_model_input_sizes: dict[str, int] = {}  # noqa: RUF012
    model_input_names: list[str] = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012
    padding_side: str = "right"
    truncation_side: str = "right"
    slow_tokenizer_class: Any = None
    _auto_class: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        self.init_inputs: tuple[Any, ...] = ()
        self.init_kwargs: dict[str, Any] = copy.deepcopy(
            {name: value for name, value in kwargs.items() if name != "tokenizer_object"}
        )
        self.name_or_path = kwargs.pop("name_or_path", "")
        self._processor_class = kwargs.pop("processor_class", None)
        limit = kwargs.pop("model_max_length", kwargs.pop("max_len", None))
        self.model_max_length = limit if limit is not None else VERY_LARGE_INTEGER
        for side in ("padding_side", "truncation_side"):
            value = kwargs.pop(side, getattr(self, side))
            if value not in ("left", "right"):
                raise ValueError(f"{side} is {value!r}, neither 'left' nor 'right'")
            with contextlib.suppress(AttributeError):  # a read-only property of the subclass
                setattr(self, side, value)
        self.model_input_names = kwargs.pop("model_input_names", self.model_input_names)
        self.clean_up_tokenization_spaces = kwargs.pop("clean_up_tokenization_spaces", True)
        self.split_special_tokens = kwargs.pop("split_special_tokens", False)
        self.deprecation_warnings: dict[str, bool] = {}
        self._in_target_context_manager = False
        self.chat_template = kwargs.pop("chat_template", None)
        super().__init__(**kwargs)

    def _constructed(self) -> None:
        """Finish what needs the vocabulary; called when the constructor of the outermost class has returned."""

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizers library splits the text."""
        return False

    @property
    def vocab_size(self) -> int:
        """The number of ids in the vocabulary, without added tokens."""
        raise NotImplementedError

    @property
    def max_len_single_sentence(self) -> int:
        """The number of ids that one text may have besides its special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The number of ids that a pair may have besides its special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def get_vocab(self) -> dict[Any, int]:
        """Return every token with its id."""
        raise NotImplementedError

    @contextlib.contextmanager
    def as_target_tokenizer(self) -> Iterator[None]:
        """Encode targets in this block: as inputs are encoded, unless a subclass does it otherwise."""
        self._switch_to_target_mode()
        self._in_target_context_manager = True
        yield
        self._in_target_context_manager = False
        self._switch_to_input_mode()

    def _switch_to_input_mode(self) -> None:
        """Encode inputs from now on."""

    def _switch_to_target_mode(self) -> None:
        """Encode targets from now on."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoTokenizer") -> None:
        """Record the auto class that this class belongs to."""
        cls._auto_class = auto_class

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, is_fast={self.is_fast}, "
            f"padding_side={self.padding_side!r}, special_tokens={self.special_tokens_map})"
        )
