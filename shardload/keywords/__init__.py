"""The keywords of the public entry points: groups of them, who takes which, and what to do instead elsewhere."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from shardload.keywords.translation import KeywordError as KeywordError
from shardload.keywords.translation import Settings as Settings
from shardload.keywords.translation import translation
from shardload.where import KEYWORD_FIELDS, PLACE_FIELDS, TRUST_FIELDS, CodeTrust, Where

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from shardload.where import RemoteBase, Trust, WhereLike

    Around = Callable[[Callable[[], Mapping[str, Any]]], AbstractContextManager[Any]]

Function = TypeVar("Function", bound="Callable[..., Any]")

_NONE: Mapping[str, Any] = MappingProxyType({})


class SourceKeywords(TypedDict, total=False):
    """Keywords that say where a repo's files are."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    subfolder: str | None
    allow_links: bool
    storage_options: Mapping[str, Any] | None


class WhereKeywords(SourceKeywords, total=False):
    """Keywords that say where a checkpoint's weights are."""

    variant: str | None
    state_dict: str | None
    disk: bool


class TrustKeywords(TypedDict, total=False):
    """Keywords that say what a repo's code may do."""

    trust_remote_code: Trust
    code_revision: str | None
    remote_base: RemoteBase


class RepoKeywords(TrustKeywords, SourceKeywords, total=False):
    """Keywords of what runs a repo's code and reads no weight."""


class ModelKeywords(TrustKeywords, WhereKeywords, total=False):
    """Keywords of what runs a repo's code and reads its weights."""


class ConfigSettings(TypedDict, total=False):
    """Settings of a config that are often passed to a loader. At run time the config itself says which it has."""

    attn_implementation: str | None
    num_labels: int
    num_layers: int
    num_hidden_layers: int
    pre_seq_len: int | None
    prefix_projection: bool
    quantization_bit: int
    use_cache: bool
    output_hidden_states: bool
    output_attentions: bool
    pad_token_id: int | None
    vocab_size: int
    _settings: Settings


class TokenizerSettings(TypedDict, total=False):
    """Settings of a tokenizer that are often passed to a loader. At run time the tokenizer says which it has."""

    use_fast: bool
    padding_side: str
    truncation_side: str
    model_max_length: int
    add_bos_token: bool
    add_eos_token: bool
    legacy: bool
    _settings: Settings


class OtherLoaders(TypedDict, total=False):
    """Keywords of other loaders: synonyms, and what changes nothing here."""

    torch_dtype: str | torch.dtype | None
    use_auth_token: str | bool | None
    low_cpu_mem_usage: bool
    use_safetensors: bool | None
    resume_download: bool | None
    empty_init: bool
    _notes: Sequence[str]


class LoadKeywords(ModelKeywords, ConfigSettings, OtherLoaders, total=False):
    """Keywords of what makes a model of a repo and reads its weights."""


class ConfigKeywords(RepoKeywords, ConfigSettings, total=False):
    """Keywords of what makes a config."""


class TokenizerKeywords(RepoKeywords, TokenizerSettings, total=False):
    """Keywords of what makes a tokenizer."""


_GROUPS = {
    f"Unpack[{group.__name__}]": group
    for group in (
        SourceKeywords,
        WhereKeywords,
        RepoKeywords,
        ModelKeywords,
        LoadKeywords,
        ConfigKeywords,
        TokenizerKeywords,
    )
}


def place_of(where: WhereLike, keywords: Mapping[str, Any] = _NONE) -> Where:
    """Return the Where of an entry point's first argument and its keywords; other keywords are ignored."""
    given = {name: value for name, value in keywords.items() if name in PLACE_FIELDS}
    if isinstance(where, Where):
        return replace(where, **given) if given else where
    return Where(where, **given)


def trust_of(place: Where, keywords: Mapping[str, Any]) -> CodeTrust:
    """Return the CodeTrust of an entry point's keywords; other keywords are ignored."""
    given = {name: value for name, value in keywords.items() if name in TRUST_FIELDS}
    return CodeTrust(revision=place.named_revision, hub=place, **given)


def entry_point(function: Function) -> Function:
    """Make a public function name its keywords, and decline others by name.

    `help()` and `inspect.signature` list every keyword of a group (`**keywords: Unpack[WhereKeywords]`) with its
    default. A synonym of another loader is taken, and so is a keyword that changes nothing here. A keyword of another
    entry point, or what another loader does in another way, raises UsageError or UnsupportedError with what to do
    instead; a misspelt one raises KeywordError (also a TypeError) with the name that may be meant. A function whose
    group has `_settings` gets there the names that only a repo's files can know.
    """
    return _entry_point(function, lambda _given: nullcontext())


def entry_point_within(around: Around) -> Callable[[Function], Function]:
    """Make an entry point of a function whose calls run in a block, errors of their keywords included.

    `around` makes the block; it may ask for the arguments of the call by name, as far as they are known.
    """
    return lambda function: _entry_point(function, around)


def _entry_point(function: Function, around: Around) -> Function:
    plain = inspect.signature(function)
    group = _group(plain)
    signature = _full(plain, group)
    own = {
        name
        for name, each in signature.parameters.items()
        if each.kind is not inspect.Parameter.POSITIONAL_ONLY
    }

    def called(*arguments: Any, **keywords: Any) -> Any:
        if keywords.keys() <= own:
            return function(*arguments, **keywords)
        made = translation(keywords, function.__name__, own, group if "_settings" in group else ())
        if made.settings:
            made.keywords["_settings"] = Settings(made.settings, function.__name__, own)
        if made.notes and "_notes" in group:
            made.keywords["_notes"] = made.notes
        return function(*arguments, **made.keywords)

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        with around(lambda: given(arguments, keywords)):
            return called(*arguments, **keywords)

    def given(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {name: value for name, value in keywords.items() if name in own}
        return signature.bind_partial(*arguments, **known).arguments

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return cast("Function", checked)


def _group(signature: inspect.Signature) -> Collection[str]:
    """Return the names that `**keywords` of a signature stands for."""
    *_, last = signature.parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return ()
    return _GROUPS[last.annotation].__optional_keys__


def _full(signature: inspect.Signature, group: Collection[str]) -> inspect.Signature:
    """Return a signature in which the names of a group stand in the place of `**keywords`, if there is one."""
    if not group:
        return signature
    *plain, _ = signature.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for name, each in KEYWORD_FIELDS.items()
        if name in group
    ]
    return signature.replace(parameters=[*plain, *named])
