"""make_tokenizer: the repo's own tokenizer class, run with the caller's consent, or its tokenizer.json."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError, Cures, NotFoundError, RemoteCodeError, ShardloadError, without
from shardload.remote_code.auto_map import ClassRef, parse_reference
from shardload.remote_code.failures import explain
from shardload.remote_code.importer import RepoCode, open_code
from shardload.remote_code.library import is_installed, tokenizer_class
from shardload.remote_code.repo_folder import folder_of
from shardload.remote_code.tokenizer_files import (
    FAST_FILE,
    SETTINGS,
    constructor_arguments,
    tokenizer_settings,
    vocabulary_files,
)
from shardload.remote_code.tokenizer_options import tokenizer_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.tokenizer_options import Options
    from shardload.where import CodeTrust

EXTRAS = ("sentencepiece", "tiktoken", "tokenizers")
"""Packages that tokenizers need; shardload has an extra of each name."""


def make_tokenizer(
    source: Source,
    config_json: Mapping[str, Any] | None,
    trust: CodeTrust,
    *,
    options: Options = None,
) -> Any:
    """Return the tokenizer of a repo.

    In this order: the class that `auto_map` names under AutoTokenizer, in tokenizer_config.json or config.json
    (its code runs: the caller's consent is needed); tokenizer.json through the tokenizers library; the class of an
    installed transformers that tokenizer_config.json names. `options` overrule the settings:
    those of a caller are checked first, those of a repo's code are not.

    Raises NotFoundError when there is none of these; UntrustedCodeError; RemoteCodeError; CorruptError.
    """
    ref = tokenizer_ref(source, config_json)
    if ref is not None:
        with for_no_model():
            return _from_code(open_code(source, None, ref, trust, beside=()), ref, source, options)
    settings = tokenizer_settings(source)
    if FAST_FILE in source.names():
        return _fast(source, settings, options)
    found = _from_library(source, settings, options)
    if found is None:
        raise _nothing(source, settings)
    return found


def tokenizer_ref(source: Source, config_json: Mapping[str, Any] | None) -> ClassRef | None:
    """Return the tokenizer class that a repo's `auto_map` names, in tokenizer_config.json or config.json."""
    own = tokenizer_entry(tokenizer_settings(source), SETTINGS)
    return own or tokenizer_entry(config_json or {}, "config.json")


@contextlib.contextmanager
def for_no_model() -> Iterator[None]:
    """Remove the cures that apply to models only."""
    try:
        yield
    except ShardloadError as error:
        error.cure = without(error.cure, "model_class")
        raise


def tokenizer_entry(document: Mapping[str, Any], name: str) -> ClassRef | None:
    """Return the tokenizer class that a JSON document's auto_map names; of [slow, fast] the first that is there.

    The slow one, written in Python, comes first: the repo's own model code was written with it.
    """
    auto_map = document.get("auto_map") or {}
    value = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    entries = value if isinstance(value, list) else [value]
    text = next((entry for entry in entries if entry is not None), None)
    if text is None:
        return None
    if not isinstance(text, str):
        raise CorruptError(f"auto_map's AutoTokenizer is not a name: {text!r}", where=f"{name}, auto_map")
    return parse_reference(text)


def needs_package(package: str, where: str | None = None) -> RemoteCodeError:
    """Return the error for a package that a tokenizer needs and that is not installed."""
    return RemoteCodeError(
        f"the tokenizer needs the package {package}, which is not installed",
        where=where,
        cure=f"pip install {package}",
    )


def _from_code(repo: RepoCode, ref: ClassRef, source: Source, given: Options) -> Any:
    try:
        cls, namespace = repo.loaded(ref)
    except RemoteCodeError as error:
        raise _with_extra(error.__cause__, error) from error.__cause__
    options = tokenizer_options(given, cls, tokenizer_settings(source))
    try:
        if namespace.base == "transformers":
            vocabulary_files(source, getattr(cls, "vocab_files_names", {}))
            return cls.from_pretrained(folder_of(source), **options)
        return cls(**{**constructor_arguments(source, cls), **options})
    except Exception as error:
        if repo.fall_back(error, namespace):
            return _from_code(repo, ref, source, given)
        explained = explain(error, namespace, f"making the tokenizer {ref}")
        if not isinstance(error, (ShardloadError, ImportError)):
            explained.cure = _cure_of_own_code(getattr(cls, "vocab_files_names", {}).values())
        raise _with_extra(error, explained) from error


def _cure_of_own_code(vocabulary: Iterable[str]) -> str:
    """Return the cure where a tokenizer's own code fails: to check the files that it reads first."""
    correct = "correct that line of the repo's code"
    names = ", ".join(vocabulary)
    return (
        f"check that the vocabulary is complete and belongs to this code ({names}); or {correct}"
        if names
        else correct
    )


def _with_extra(cause: BaseException | None, error: ShardloadError) -> ShardloadError:
    """Return the error, or one that names the extra to install."""
    name = str(getattr(cause, "name", None)).split(".", maxsplit=1)[0]
    if isinstance(cause, ModuleNotFoundError) and name in EXTRAS:
        return needs_package(name, error.where)
    return error


def _fast(source: Source, settings: dict[str, Any], options: Options) -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        raise needs_package("tokenizers", f"{source.label}/{FAST_FILE}")
    from shardload.transformers_shim.tokenization_utils_fast import PreTrainedTokenizerFast

    overruled = tokenizer_options(options, PreTrainedTokenizerFast, settings)
    arguments = {**constructor_arguments(source, PreTrainedTokenizerFast), **overruled}
    # Few models take token types: they are returned only where the settings, or the caller, ask for them.
    arguments.setdefault("model_input_names", ["input_ids", "attention_mask"])
    with no_foreign_errors(f"{FAST_FILE} can't be read", f"{source.label}/{FAST_FILE}"):
        return PreTrainedTokenizerFast(**arguments)


def _from_library(source: Source, settings: dict[str, Any], options: Options) -> Any:
    """Return the tokenizer of an installed transformers' class, or None."""
    name = settings.get("tokenizer_class")
    cls: Any = tokenizer_class(name) if isinstance(name, str) else None
    if cls is None:
        return None
    vocabulary_files(source, getattr(cls, "vocab_files_names", {}))
    overruled = tokenizer_options(options, cls, settings)
    with no_foreign_errors(f"transformers' {name} can't be made of the repo's files", source.label):
        safe = {"trust_remote_code": False, "local_files_only": True}
        return cls.from_pretrained(folder_of(source), **{**overruled, **safe})


@contextlib.contextmanager
def no_foreign_errors(what: str, where: str) -> Iterator[None]:
    """Raise CorruptError for any error of a library; the panics of the tokenizers library are no Exceptions."""
    try:
        yield
    except (ShardloadError, MemoryError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise CorruptError(
            f"{what}: {type(error).__name__}: {error}",
            where=where,
            cure="fetch the file again, or correct it",
        ) from error


def _nothing(source: Source, settings: dict[str, Any]) -> NotFoundError:
    named = settings.get("tokenizer_class")
    asks = (
        f"; {SETTINGS} names {named}, a class of transformers or of code that is not here"
        if isinstance(named, str)
        else ""
    )
    cures = [f"download {FAST_FILE} as well"]
    if asks:
        cures.append("download the code and the auto_map that name it")
        cures += [] if is_installed() else ["install transformers"]
    return NotFoundError(
        f"the repo has no tokenizer of its own (auto_map) and no {FAST_FILE}{asks}",
        where=source.label,
        cure=Cures(*cures),
    )
