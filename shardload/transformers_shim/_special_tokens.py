"""A tokenizer's special tokens: named ones (`eos_token`, …), additional ones, and their ids."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ATTRIBUTES = [*NAMES, "additional_special_tokens"]


@dataclass(eq=True)
class AddedToken:
    """A token that text is split at before the vocabulary is used, and its options for the text beside it.

    `lstrip` and `rstrip` remove the spaces on that side; `single_word` keeps it from matching inside a word;
    `normalized` (by default the opposite of `special`) says that its text is lowercased where the tokenizer lowercases.
    """

    content: str = ""
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False
    normalized: bool | None = None

    def __post_init__(self) -> None:
        if self.normalized is None:
            self.normalized = not self.special

    def __hash__(self) -> int:
        return hash(self.content)

    def __str__(self) -> str:
        return self.content

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, as the class of the tokenizers library does."""
        return asdict(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def as_token(value: Any) -> Any:
    """Return a special token from its JSON form: a text as it is, an object as an AddedToken."""
    if not isinstance(value, dict) or "content" not in value:
        return value
    fields = {name: value[name] for name in AddedToken.__dataclass_fields__ if name in value}
    return AddedToken(**fields)


class SpecialTokensMixin:
    """The special tokens; a subclass may define any of them as a read-only property."""

    SPECIAL_TOKENS_ATTRIBUTES = ATTRIBUTES

    verbose: bool = False
    pad_token: Any
    pad_token_id: Any
    unk_token: Any
    unk_token_id: Any

    def __init__(self, verbose: bool = False, **kwargs: Any) -> None:
        for name in NAMES:
            vars(self).setdefault(f"_{name}", None)
        vars(self).setdefault("_additional_special_tokens", [])
        self._pad_token_type_id = 0
        self.verbose = verbose
        for name in self.SPECIAL_TOKENS_ATTRIBUTES:
            if kwargs.get(name) is not None:
                self._store(name, kwargs[name])

    def _store(self, name: str, value: Any) -> None:
        # The subclass's property decides what callers see; the given value is kept under the private name.
        value = [as_token(v) for v in value] if name == "additional_special_tokens" else as_token(value)
        with contextlib.suppress(AttributeError):
            setattr(self, name, value)
            return
        setattr(self, f"_{name}", value)

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens that have no name of their own."""
        return [str(token) for token in self._additional_special_tokens or ()]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Any) -> None:
        self._additional_special_tokens = [as_token(token) for token in value or ()]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of the additional special tokens."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)  # type: ignore[no-any-return]

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, values: list[int]) -> None:
        self._additional_special_tokens = [self.convert_ids_to_tokens(value) for value in values]

    @property
    def pad_token_type_id(self) -> int:
        """The token type of padding."""
        return self._pad_token_type_id

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """The special tokens that are set, by name, as they were given."""
        found = {name: getattr(self, f"_{name}", None) for name in self.SPECIAL_TOKENS_ATTRIBUTES}
        return {name: value for name, value in found.items() if value}

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens that are set, by name, as texts."""
        return {
            name: [str(token) for token in value] if isinstance(value, (list, tuple)) else str(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[Any]:
        """Every special token once, as it was given."""
        found: dict[str, Any] = {}
        for value in self.special_tokens_map_extended.values():
            for token in value if isinstance(value, (list, tuple)) else (value,):
                found.setdefault(str(token), token)
        return list(found.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, as a text."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens."""
        return self.convert_tokens_to_ids(self.all_special_tokens)  # type: ignore[no-any-return]

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens (a text, an AddedToken, or a list) and return how many of them were new."""
        if not new_tokens:
            return 0
        new_tokens = list(new_tokens) if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        return int(self._add_tokens(new_tokens, special_tokens=special_tokens))

    def add_special_tokens(
        self, special_tokens_dict: dict[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Set special tokens by name, add them, and return how many were new."""
        added: list[Any] = []
        for name, value in special_tokens_dict.items():
            if name not in self.SPECIAL_TOKENS_ATTRIBUTES:
                raise ValueError(
                    f"{name} is not a special token; the names are {self.SPECIAL_TOKENS_ATTRIBUTES}"
                )
            if name == "additional_special_tokens":
                kept = [] if replace_additional_special_tokens else list(self._additional_special_tokens)
                self._store(name, [*kept, *(t for t in value if str(t) not in map(str, kept))])
                added += [as_token(token) for token in value]
            else:
                self._store(name, value)
                added.append(as_token(value))
        return self.add_tokens(added, special_tokens=True)

    def sanitize_special_tokens(self) -> int:
        """Add the special tokens to the vocabulary where they are missing."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        raise NotImplementedError

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or a list of ids."""
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens."""
        raise NotImplementedError


def _named(name: str) -> property:
    """Return the property for one named token."""

    def get(self: SpecialTokensMixin) -> str | None:
        value = getattr(self, f"_{name}", None)
        return None if value is None else str(value)

    def put(self: SpecialTokensMixin, value: Any) -> None:
        setattr(self, f"_{name}", as_token(value))

    return property(get, put, doc=f"The {name.removesuffix('_token')} token as a text, or None.")


def _named_id(name: str) -> property:
    """Return the property for the id of one named token."""

    def get(self: SpecialTokensMixin) -> int | None:
        value = getattr(self, name)
        return None if value is None else self.convert_tokens_to_ids(value)

    def put(self: SpecialTokensMixin, value: int | None) -> None:
        token = None if value is None else self.convert_ids_to_tokens(value)
        self._store(name, token) if token is not None else setattr(self, f"_{name}", None)

    return property(get, put, doc=f"The id of the {name.removesuffix('_token')} token, or None.")


for _name in NAMES:
    setattr(SpecialTokensMixin, _name, _named(_name))
    setattr(SpecialTokensMixin, f"{_name}_id", _named_id(_name))
