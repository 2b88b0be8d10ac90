"""load_config: config.json as an object, made by the repo's own configuration class where it has one."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.json_file import read_object
from shardload.errors import CorruptError, Cures, ShardloadError, UntrustedCodeError, Wording
from shardload.remote_code.auto_map import choose_model, config_entry
from shardload.remote_code.failures import explain
from shardload.remote_code.importer import RepoCode, open_code, require_base
from shardload.remote_code.library import config_class_for, library, version
from shardload.remote_code.namespaces import namespace_of
from shardload.remote_code.plain_config import LoadedConfig, PlainConfig, plain_origin, settings_of
from shardload.transformers_classes.config_part import settings_for
from shardload.where import UNTRUSTED, CodeTrust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.auto_map import ClassRef
    from shardload.remote_code.code import Base
    from shardload.remote_code.namespace import Namespace


# Their backbone's name is one of timm's, unless a setting says otherwise; other classes look every name up on the Hub.
_NAMED_FOR_TIMM = frozenset(
    {"conditional_detr", "dab-detr", "deformable_detr", "detr", "omdet-turbo", "table-transformer"}
)


def load_config(
    source: Source,
    config_json: Mapping[str, Any] | None,
    trust: CodeTrust = UNTRUSTED,
    *,
    dtype: Any = None,
    model_class: Callable[[Any], nn.Module] | None = None,
) -> LoadedConfig:
    """Return the config of a repo.

    In this order: `model_class.config_class` where the caller's class has one; the repo's own class that
    `auto_map` names (its code runs: the caller's consent is needed); the class of an installed transformers for the
    model that `architectures` names; a plain object with config.json's entries as attributes. A caller who
    passes `model_class` and does not trust the repo gets the plain object. `dtype` (a torch dtype or its name) is set
    as `torch_dtype` before any class sees the settings.

    Raises UntrustedCodeError, RemoteCodeError, CorruptError for settings that their class refuses.
    """
    settings = settings_of(source, config_json, dtype)
    if trust.remote_base != "auto":
        require_base(trust.remote_base)
    callers_class = getattr(model_class, "config_class", None)
    if callers_class is not None:
        part = settings_of(source, settings_for(callers_class, config_json or {}), dtype)
        made = _construct(callers_class, _without_code(part))
        return LoadedConfig(made, f"{_full_name(callers_class)} (of model_class=)")
    ref = config_entry(config_json) if (config_json or {}).get("auto_map") else None
    if ref is not None and (model_class is None or trust.allows_code):
        return _from_code(open_code(source, config_json, ref, trust), ref, settings)
    origin = plain_origin(config_json)
    if ref is not None:
        origin += f" (the repo's own {ref} was not trusted and not run)"
    if model_class is None:
        if choose_model(config_json) is not None:
            return LoadedConfig(_for_repo_code(settings), origin)
        if trust.remote_base == "parts":
            from shardload.remote_code.library_part import part_config_for, part_origin

            part = part_config_for(settings)
            if part is not None:
                return LoadedConfig(_construct(part, _without_code(settings)), part_origin(part))
        found = config_class_for(settings)
        if found is not None:
            part = settings_of(source, settings_for(found, config_json or {}), dtype)
            made = _construct(found, _without_code(part))
            return LoadedConfig(made, f"{_full_name(found)} ({version()})")
    return LoadedConfig(PlainConfig(settings), origin)


def _from_code(repo: RepoCode, ref: ClassRef, settings: dict[str, Any]) -> LoadedConfig:
    cls, namespace = repo.loaded(ref)
    if namespace.base == "transformers":
        refuse_other_repos(settings)
    try:
        config = _make(cls, settings)
    except (Exception, SystemExit) as error:
        if repo.fall_back(error, namespace):
            return _from_code(repo, ref, settings)
        raise explain(error, namespace, f"making the config {ref}", repo.written_for) from error
    return LoadedConfig(config, code_origin(repo, ref, namespace.base))


def code_origin(repo: RepoCode, ref: ClassRef, base: Base) -> str:
    """Return the origin of a class as text: its name, the hash of its code, and who serves its imports."""
    served = ""
    if base != "shim":
        served = f", {'with parts of' if base == 'parts' else 'its transformers is'} {version()}"
    whose = "code of the repo" if ref.repo is None else f"code of {repo.source.label}"
    return f"{ref.module}.{ref.name} ({whose}, sha256 {repo.code.sha256(base)[:12]}…{served})"


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that lead a class of transformers to no code: raise UntrustedCodeError, or leave them out.

    Where a nested config has an `auto_map`, and its auto class does not know the config's class, transformers asks on
    the terminal whether to run that code. Only the caller's arguments decide, so such entries are left out.
    """
    refuse_other_repos(settings)
    return {
        name: value if name == "auto_map" else _without_auto_maps(value) for name, value in settings.items()
    }


def _without_auto_maps(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_auto_maps(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_auto_maps(each) for name, each in value.items() if name != "auto_map"}


def refuse_other_repos(settings: Mapping[str, Any], *, inside: str = "") -> None:
    """Raise UntrustedCodeError where a file's settings make transformers ask for another repo than the one that loads.

    Such a setting is an implementation (`attn_implementation`, of the model or of parts of it) with the name of a repo,
    or with one that transformers takes from the Hub because its package is not installed: their code is imported. A
    backbone that only its name describes is looked up on the Hub, by transformers or by timm.
    """
    for name, value in settings.items():
        place = name if name.endswith("_implementation") else inside
        for each in _leaves(value):
            if isinstance(each, dict):
                refuse_other_repos(each, inside=place)
            elif place and isinstance(each, str) and ("/" in each or _is_fetched(each)):
                raise _other_repo(f"config.json asks for the code of another repo, {each}", place)
            elif name in ("backbone", "architecture") and isinstance(each, str) and _looks_up(settings, each):
                raise _other_repo(f"config.json makes transformers look up another repo, {each}", name)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield a setting's value; for lists, in each other too, what they hold."""
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _other_repo(what: str, entry: str) -> UntrustedCodeError:
    return UntrustedCodeError(
        what,
        where=f"config.json, {entry}",
        cure=Cures("remove the entry", Wording("pass a config that you made: {config}", config=...)),
    )


def _looks_up(settings: Mapping[str, Any], backbone: str) -> bool:
    """Whether a class of transformers, given these settings, looks a backbone up on the Hub by its name."""
    if settings.get("backbone_config") is not None:
        return False
    if ":" in backbone:  # timm's "hf-hub:org/name"
        return True
    kind = settings.get("model_type")
    if "backbone" not in settings or kind == "timm_backbone":
        return False
    by_timm = settings.get("use_timm_backbone", True) and not settings.get("backbone_kwargs")
    return not (by_timm and kind in _NAMED_FOR_TIMM)


def _is_fetched(implementation: str) -> bool:
    """Whether transformers fetches an attention function by its package `kernels`, for want of the function's own."""
    own = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(implementation)
    return own is not None and find_spec(own) is None and find_spec("kernels") is not None


def _for_repo_code(settings: dict[str, Any]) -> Any:
    """Return the config for a repo's model class where the repo has no config class: transformers' base class."""
    from shardload.transformers_shim.configuration_utils import PretrainedConfig

    return _construct(PretrainedConfig, settings)


def _make(cls: Any, settings: dict[str, Any]) -> Any:
    return cls.from_dict(settings) if hasattr(cls, "from_dict") else cls(**settings)


def _construct(cls: Any, settings: dict[str, Any]) -> Any:
    try:
        return _make(cls, settings)
    except ShardloadError:
        raise
    except Exception as error:
        raise CorruptError(
            f"{_full_name(cls)} refuses the settings: {type(error).__name__}: {error}",
            where=f"config.json of {settings['_name_or_path']}",
            cure=Cures("correct config.json", Wording("pass {config}", config=...)),
        ) from error


def convert_config(repo: RepoCode, config: Any, namespace: Namespace, cls: Any) -> Any:
    """Return the config for a model class of a namespace of the repo, remade where its class is another one there.

    A config may have been made before the model's code turned out to need parts of transformers or all of it, which
    then serves the whole repo, the config included. Where the repo's `auto_map` has no config class, the config is
    remade by the one that the model's class names: it knows other names of the settings, and their defaults.
    """
    try:
        kind = _class_for(repo, config, namespace, cls)
        return config if kind is None else _remade(kind, config)
    except (Exception, SystemExit) as error:
        raise explain(error, namespace, "remaking the config for its model", repo.written_for) from error


def _class_for(repo: RepoCode, config: Any, namespace: Namespace, cls: Any) -> Any:
    """Return the class that a config should be of, or None where it stays as it is."""
    from shardload.transformers_shim.configuration_utils import PretrainedConfig

    if repo.owns(config):
        if type(config).__module__.startswith(namespace.package):
            return None
        module = type(config).__module__.split(".h", 1)[1].partition(".")[2]
        return getattr(importlib.import_module(f"{namespace.package}.{module}"), type(config).__name__)
    if type(config) not in (PlainConfig, PretrainedConfig):
        return None
    base = library().PretrainedConfig if namespace.base == "transformers" else PretrainedConfig
    named = getattr(cls, "config_class", None)
    if isinstance(named, type) and issubclass(named, base) and named is not PretrainedConfig:
        return named
    return base if namespace.base == "transformers" else None


def _remade(kind: Any, config: Any) -> Any:
    made = _make(kind, config.to_dict())
    chosen = getattr(config, "_attn_implementation_internal", None)
    if chosen is not None:  # the caller's choice: config.json does not say it
        made._attn_implementation = chosen
    return made


def attach_generation_config(model: nn.Module, source: Source) -> str | None:
    """Set `model.generation_config` from generation_config.json, where the repo has that file.

    Returns a line for the report, or None without the file. Raises CorruptError for a file that is not a JSON object,
    and for settings that their class refuses.
    """
    name = "generation_config.json"
    if name not in source.names():
        return None
    if not hasattr(model, "generation_config"):
        return f"{name} is not used: the model has no generation_config"
    settings = read_object(source, name)
    try:
        model.generation_config = _generation_class(model).from_dict(settings)
    except ShardloadError:
        raise
    except Exception as error:
        raise CorruptError(
            f"{name} holds settings that are refused: {type(error).__name__}: {error}",
            where=f"{source.label}/{name}",
            cure=f"correct or remove {name}",
        ) from error
    return f"{name} is on model.generation_config"


def _generation_class(model: nn.Module) -> Any:
    own = type(model.generation_config)
    if hasattr(own, "from_dict"):
        return own
    bases = [cls for cls in type(model).__mro__ if namespace_of(cls.__module__) is None]
    generating = next(
        (cls for cls in bases if "generate" in vars(cls)), None
    )  # the settings are for its loop
    if any(cls.__module__.startswith("transformers.") for cls in ([generating] if generating else bases)):
        return library().GenerationConfig
    from shardload.transformers_shim.generation.configuration_utils import GenerationConfig

    return GenerationConfig


def _full_name(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
