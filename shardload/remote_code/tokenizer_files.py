"""A tokenizer's files in a repo: its settings, special and added tokens, chat template and vocabulary."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import HEAD_BYTES, kind_of
from shardload.checkpoint.json_file import read_object
from shardload.errors import CorruptError, NotFoundError
from shardload.transformers_shim.front import SPECIAL_TOKENS, AddedToken, as_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.checkpoint.sources.source import Source

SETTINGS = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"
_LIMIT = 64 << 20
# Settings that describe the class and are not arguments of its constructor.
_NOT_ARGUMENTS = ("auto_map", "tokenizer_class", "tokenizer_file", "init_inputs", "added_tokens_decoder")

# What a tokenizer computes with, long after it was made: by name, the types of its values and what they are.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "model_max_length": ((int, float), "a number"),
    "max_len": ((int, float), "a number"),
    "model_input_names": ((list,), "a list of names"),
    "chat_template": ((str, list, dict), "a template"),
}


def _settings(source: Source, name: str) -> dict[str, Any]:
    """Return a JSON object of the repo, {} when it has no such file. Raises CorruptError."""
    return read_object(source, name) if name in source.names() else {}


def tokenizer_settings(source: Source) -> dict[str, Any]:
    """Return tokenizer_config.json, empty where the repo has none."""
    return _settings(source, SETTINGS)


def constructor_arguments(source: Source, cls: Any) -> dict[str, Any]:
    """Return the keyword arguments that a tokenizer class is constructed with.

    They are the entries of tokenizer_config.json, the special tokens, the added tokens by their ids, the chat
    template and the paths of the vocabulary files that the class names (None for those that the repo lacks).
    """
    settings = tokenizer_settings(source)
    _refuse_other_kinds(source, settings)
    added = _added_tokens(source, settings)
    arguments = {name: value for name, value in settings.items() if name not in _NOT_ARGUMENTS}
    special = {
        **_special_tokens(source, settings, added),
        **{n: arguments[n] for n in SPECIAL_TOKENS if n in arguments},
    }
    by_text = {token.content: token for token in added.values()}
    for name, value in special.items():
        arguments[name] = _with_options(_special_token(source, name, value), by_text)
    if added:
        arguments["added_tokens_decoder"] = added
    template = chat_template(source)
    if template is not None:
        arguments["chat_template"] = template
    arguments["name_or_path"] = source.label if source.is_local else source.label.split("@")[0]
    return {**arguments, **vocabulary_files(source, getattr(cls, "vocab_files_names", {}))}


def vocabulary_files(source: Source, names: Mapping[str, str]) -> dict[str, str | None]:
    """Return the paths of the vocabulary's files on this disk, by the arguments that take them.

    Raises NotFoundError when the repo has none of them, and CorruptError for a Git LFS pointer in place of a file.
    """
    found: dict[str, str | None] = {}
    present = frozenset(source.names())
    for argument, name in names.items():
        # Classes write "./tokenizer.model" too.
        plain = posixpath.normpath(name)
        found[argument] = str(source.open(plain).local_path()) if plain in present else None
        if found[argument] is not None:
            _refuse_pointer(source, plain)
    if found and not any(found.values()):
        raise NotFoundError(
            f"the repo has none of its tokenizer's vocabulary files: {', '.join(names.values())}",
            where=source.label,
            cure="download those files as well",
        )
    return found


def chat_template(source: Source) -> Any:
    """Return the chat template of chat_template.jinja or .json, or None; the settings may have one instead."""
    if "chat_template.jinja" in source.names():
        return _text(source, "chat_template.jinja")
    return _settings(source, "chat_template.json").get("chat_template")


def _text(source: Source, name: str) -> str:
    file = source.open(name)
    if file.size > _LIMIT:
        raise CorruptError(f"{name} has {file.size:,} bytes", where=source.label)
    try:
        return file.read_at(0, file.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{name} is not UTF-8: {error}", where=f"{source.label}/{name}") from error


def _refuse_pointer(source: Source, name: str) -> None:
    """Raise CorruptError for a Git-LFS pointer, and for the page of a server, in the place of a vocabulary."""
    kind = kind_of(source.open(name).read_at(0, HEAD_BYTES), name)
    if kind is not None and kind.code in {"E-LFS", "E-HTML"}:
        raise CorruptError(
            f"{name} is {kind.what}", where=f"{source.label}/{name}", cure=kind.cure, code=kind.code
        )


def _added_tokens(source: Source, settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Return the added tokens by their ids, from the settings or else from the older added_tokens.json."""
    listed = settings.get("added_tokens_decoder")
    try:
        if isinstance(listed, dict):
            return {int(index): as_token(_as_object(token)) for index, token in listed.items()}
        older = _settings(source, "added_tokens.json")
        special = {
            str(as_token(t)) for name in SPECIAL_TOKENS for t in _listed(settings.get(name)) if t is not None
        }
        return {
            int(index): AddedToken(text, special=text in special)
            for text, index in sorted(older.items(), key=lambda item: item[1])
        }
    except (TypeError, ValueError) as error:
        raise CorruptError(f"the added tokens are malformed: {error}", where=source.label) from error


def _as_object(token: Any) -> dict[str, Any]:
    if isinstance(token, dict) and isinstance(token.get("content"), str):
        return token
    raise ValueError(f"{token!r} is not an added token")


def _special_tokens(source: Source, settings: dict[str, Any], added: dict[int, AddedToken]) -> dict[str, Any]:
    """Return special_tokens_map.json, which is used only where the settings list no added tokens."""
    if added and "added_tokens_decoder" in settings:
        return {}
    return {n: v for n, v in _settings(source, "special_tokens_map.json").items() if n in SPECIAL_TOKENS}


def _special_token(source: Source, name: str, value: Any) -> Any:
    """Return the value, one special token or a list of them. Raises CorruptError for a token without a text."""
    for token in _listed(value):
        if isinstance(token, dict) and not isinstance(token.get("content"), str):
            raise _corrupt(source, f"{name} is {token!r}, which is no token")
    return value


def _refuse_other_kinds(source: Source, settings: Mapping[str, Any]) -> None:
    for name, (kinds, what) in _KINDS.items():
        value = settings.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise _corrupt(source, f"{name} is {value!r}, not {what}")


def _corrupt(source: Source, what: str) -> CorruptError:
    return CorruptError(
        what, where=f"{source.label}, the tokenizer's settings", cure=f"correct the entry in {SETTINGS}"
    )


def _with_options(value: Any, by_text: dict[str, AddedToken]) -> Any:
    """Return the added token of a special token's text, which has its options, or else the special token itself."""
    if isinstance(value, list):
        return [_with_options(item, by_text) for item in value]
    token = as_token(value)
    return by_text.get(str(token), token)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
