"""resolve_class: the model's class, which is the caller's, the repo's own, or an installed transformers'."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.adapter_base import adapter_base
from shardload.diagnosis.adapter_keys import adapter_cure
from shardload.errors import CorruptError, Cures, ShardloadError, UsageError, Wording, keyword
from shardload.remote_code.auto_map import PASS_CLASS, architectures, choose_model, choose_named
from shardload.remote_code.config import code_origin, convert_config
from shardload.remote_code.failures import explain
from shardload.remote_code.importer import GENERATE_FILE, RepoCode, open_code, require_base
from shardload.remote_code.library import is_installed, model_class_for, version
from shardload.remote_code.namespaces import namespace_of
from shardload.remote_code.plain_config import called_with_config, given_class
from shardload.remote_code.unnamed_class import find_unnamed, unnamed_entry
from shardload.transformers_classes.one_dtype import is_library_class
from shardload.where import UNTRUSTED, CodeTrust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import CodeType

    from torch import nn

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.auto_map import ClassRef
    from shardload.remote_code.code import Base
    from shardload.remote_code.namespace import Namespace
    from shardload.remote_code.own_loading import LeftOut

_SAY = Wording("pass {model_class} (a class or a function that takes the config)", model_class=...)


@dataclass(frozen=True, slots=True)
class NamedClass:
    """The class that `architectures` names, where `auto_map` has it under another entry than the one that was taken.

    Where `auto_map` lacks it, `auto_class` and `reference` are the entry that would name it. Trying it may show that
    the repo needs another base; `put_back` forgets that where the class is not taken after all.
    """

    name: str
    auto_class: str
    resolve: Callable[[], ResolvedClass]
    put_back: Callable[[], None]
    reference: str


@dataclass
class ResolvedClass:
    """How to make the model: `make(config)`, the class's name, and its origin as a text for people.

    `remote_base` says who serves the repo's imports of transformers; None where none of its code runs. It is final
    once `make` has returned: a constructor may ask for something that only the real transformers has. `of_library`:
    the class is one of transformers' own. `named`: another class that may fit the checkpoint better. `unnamed` looks
    for one that lies in the code that was consented to, and not in `auto_map`.
    """

    make: Callable[[Any], nn.Module]
    name: str
    origin: str
    remote_base: Base | None = None
    of_library: bool = False
    named: NamedClass | None = None
    unnamed: Callable[[], NamedClass | None] | None = None


def resolve_class(
    source: Source,
    config_json: Mapping[str, Any] | None,
    trust: CodeTrust = UNTRUSTED,
    *,
    auto_class: str | None = None,
    model_class: Callable[[Any], nn.Module] | None = None,
) -> ResolvedClass:
    """Return how to make the model.

    In this order: `model_class`; the entry of the repo's `auto_map` (`auto_class` picks one; its code runs: the
    caller's consent is needed); the class of an installed transformers that `architectures` names, with
    `remote_base="parts"` from its file alone.

    Raises UsageError, saying what to pass, when there is none of these; UntrustedCodeError; RemoteCodeError.
    """
    if model_class is not None:
        if not callable(model_class):
            raise UsageError(
                f"a {type(model_class).__name__} can't be called with a config",
                where=keyword("model_class"),
                cure="pass a class, or a function that takes the config and returns the model",
            )
        own = is_library_class(model_class)
        return ResolvedClass(called_with_config(model_class), *given_class(model_class), of_library=own)
    chosen = choose_model(config_json, auto_class)
    if chosen is not None:
        code = open_code(source, config_json, chosen[1], trust)

        def resolve(ref: ClassRef) -> ResolvedClass:
            return _with_own_generate(_from_code(code, ref), source, config_json, trust)

        resolved = resolve(chosen[1])
        if auto_class is None:
            _add_others(resolved, code, config_json, chosen[1], resolve)
        return resolved
    if trust.remote_base == "parts":
        require_base(trust.remote_base)
        from shardload.remote_code.library_part import part_class_for, part_origin

        part = part_class_for(config_json or {}, auto_class)
        if part is not None:
            make = _with_typed_errors(part, source)
            of_part = ResolvedClass(make, part.__qualname__, part_origin(part), "parts")
            return _with_own_generate(of_part, source, config_json, trust)
    found = model_class_for(config_json or {}, auto_class)
    if found is None:
        raise _nothing_to_build(source, config_json, auto_class)
    origin = f"{found.__module__}.{found.__qualname__} ({version()})"
    make = _with_typed_errors(found, source)
    of_library = ResolvedClass(make, found.__qualname__, origin, of_library=True)
    return _with_own_generate(of_library, source, config_json, trust)


def _add_others(
    resolved: ResolvedClass,
    code: RepoCode,
    config_json: Mapping[str, Any] | None,
    chosen: ClassRef,
    resolve: Callable[[ClassRef], ResolvedClass],
) -> None:
    """Let the resolved class know the class that `architectures` names instead, in `auto_map` or outside it."""
    base = code.base

    def named(found: tuple[str, ClassRef] | None) -> NamedClass | None:
        if found is None:
            return None
        entry, ref = found
        return NamedClass(
            ref.name,
            entry,
            lambda: resolve(ref),
            lambda: code.serve_by(resolved.remote_base or base),
            str(ref),
        )

    resolved.named = named(choose_named(config_json, chosen))
    resolved.unnamed = lambda: named(unnamed_entry(code, config_json, chosen))


def _with_own_generate(
    resolved: ResolvedClass, source: Source, config_json: Mapping[str, Any] | None, trust: CodeTrust
) -> ResolvedClass:
    """Let the model have the repo's own `generate`, where a file of the repo has one and the caller allows its code."""
    if not trust.allows_code or GENERATE_FILE not in source.names():
        return resolved
    from shardload.remote_code.custom_generate import attach_generate

    plain = resolved.make

    def make(config: Any) -> nn.Module:
        model = plain(config)
        attach_generate(model, source, config_json, trust, resolved.remote_base or "transformers")
        return model

    resolved.make = make
    return resolved


def _with_typed_errors(cls: Callable[[Any], nn.Module], source: Source) -> Callable[[Any], nn.Module]:
    """Return a maker that calls a class of transformers; values that the class refuses are one typed error."""
    from shardload.model.torch_messages import is_about_memory

    def make(config: Any) -> nn.Module:
        try:
            return cls(config)
        except (ShardloadError, MemoryError):
            raise
        except Exception as error:
            if _needs_values(error) or is_about_memory(error):
                raise
            raise CorruptError(
                f"{cls.__qualname__} of transformers refuses the config's values: {type(error).__name__}: {error}",
                where=f"config.json of {source.label}",
                cure=Cures(
                    "correct config.json",
                    Wording("pass {config}", config=...),
                    PASS_CLASS,
                ),
            ) from error

    return make


def _from_code(repo: RepoCode, ref: ClassRef) -> ResolvedClass:
    first = repo.loaded(ref)[1].base

    def make(config: Any) -> nn.Module:
        cls, namespace = repo.loaded(ref)
        resolved.origin, resolved.remote_base = code_origin(repo, ref, namespace.base), namespace.base
        # Constructors change their config, and this one may have to give way to another.
        untouched = _copy_of(config)
        try:
            return _tied(_constructed(cls, convert_config(repo, config, namespace, cls)))
        except (Exception, SystemExit) as error:
            if _needs_values(error):
                raise
            if repo.fall_back(error, namespace):
                return make(untouched)
            raise explain(error, namespace, f"constructing {ref}", repo.written_for) from error

    resolved = ResolvedClass(make, ref.name, code_origin(repo, ref, first), first)
    return resolved


def _copy_of(config: Any) -> Any:
    try:
        return copy.deepcopy(config)
    except Exception:  # noqa: BLE001 - a caller's own object, which nobody promised to be copied
        return config


def _constructed(cls: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """Return `cls(config)`; a constructor that asks for CUDA where there is none runs again on the CPU."""
    from shardload.model.meta_init import begin_again
    from shardload.model.torch_messages import asks_for_cuda
    from shardload.remote_code.absent_cuda import CpuForCuda

    try:
        return cls(config)
    except Exception as error:
        if not asks_for_cuda(error):
            raise
    begin_again()
    with CpuForCuda():
        return cls(config)


def _tied(model: nn.Module) -> nn.Module:
    """Return the model with its weights tied: a constructor that runs no `post_init` leaves that to the loader."""
    base: Any = next((cls for cls in type(model).__mro__ if cls.__name__ == "PreTrainedModel"), None)
    if hasattr(base, "tie_weights") and not hasattr(
        base, "get_expanded_tied_weights_keys"
    ):  # 5.x: post_init alone
        model.tie_weights()  # type: ignore[operator]
    return model


def _needs_values(error: BaseException) -> bool:
    """Return whether a constructor looked at values that a shell does not have; build_shell explains such an error."""
    from shardload.model.meta_init import constructing
    from shardload.model.torch_messages import met_meta

    return met_meta(error) and constructing()


def finish_by_its_class(model: nn.Module, source: Source, left_out: Iterable[LeftOut]) -> str | None:
    """Run the repo's own `from_pretrained` around a filled model; return a line for the report, None without one.

    Such a method sets up what no file stores: a memory, settings of its own. It asks its base class for the model,
    and the stand-in's base class returns the filled one. A method that never asks is a loader by itself and is not
    run. A method that fails leaves the filled model as it is, with a RuntimeWarning where it had the model already.
    """
    override, namespace = _own_from_pretrained(type(model))
    if override is None or namespace is None:
        return None
    from shardload.remote_code.own_loading import run_around

    return run_around(model, source, left_out, override, namespace)


def files_run(model: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the library's files that have run as parts for a model so far, by their modules."""
    from shardload.library_parts import importer

    return importer.files_run(type(model).__module__)


def _own_from_pretrained(cls: type[Any]) -> tuple[CodeType | None, Namespace | None]:
    """Return the code of the repo's own `from_pretrained` and its namespace; (None, None) where the class has none."""
    for owner in cls.__mro__:
        if "from_pretrained" in vars(owner):
            namespace = namespace_of(owner.__module__)
            function = inspect.unwrap(getattr(vars(owner)["from_pretrained"], "__func__", owner))
            code = getattr(function, "__code__", None)
            return (code, namespace) if code is not None and namespace is not None else (None, None)
    return None, None


def _is_adapter(source: Source) -> UsageError:
    cure = adapter_cure(source.label, adapter_base(source))
    return UsageError("this is an adapter, not a model", where=source.label, cure=cure)


def _nothing_to_build(
    source: Source, config_json: Mapping[str, Any] | None, auto_class: str | None
) -> UsageError:
    if config_json is None and "adapter_config.json" in source.names():
        return _is_adapter(source)
    if config_json is None:
        return UsageError(
            "there is no config.json, so nothing says which class to build", where=source.label, cure=_SAY
        )
    names = architectures(config_json)
    where = f"config.json of {source.label}"
    if not names and auto_class is None:
        what = "config.json names no class: it has neither auto_map nor architectures"
        return UsageError(what, where=where, cure=_SAY)
    wanted = auto_class or ", ".join(names)
    here = find_unnamed(source, names) if "auto_map" not in config_json else None
    if here is not None:
        return UsageError(
            f"{here.file} of the repo defines {here.name}, and config.json has no auto_map that names it",
            where=where,
            cure=Wording(
                "read that code, add {0} to config.json, and pass {trust_remote_code}; or {1}",
                here.entry,
                _SAY,
                trust_remote_code=True,
            ),
        )
    if not is_installed():
        return UsageError(
            f"config.json asks for {wanted}, a class of transformers, which is not installed",
            where=where,
            cure=Cures("pip install transformers", _SAY),
        )
    return UsageError(
        f"config.json asks for {wanted}, which the installed {version()} lacks",
        where=where,
        cure=Cures(_SAY, "download the repo's own code where it has some"),
    )
