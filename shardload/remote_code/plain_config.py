"""config.json as a plain object, for models that run no code of the repo."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.dtypes import torch_dtype
from shardload.errors import CorruptError, Cures, UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from shardload.checkpoint.sources.source import Source


class PlainConfig:
    """The entries of config.json as attributes; `torch_dtype` is a torch dtype, or None.

    Classes written for transformers also read what config.json does not say: methods (`to_dict`) and old defaults
    (`use_cache`). At the first such lookup the object becomes the stand-in's PretrainedConfig, which has all of these.
    A class that reads only what config.json says needs no file of the stand-in.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        vars(self).update({"torch_dtype": None, **settings})
        if isinstance(settings.get("torch_dtype"), str) and settings["torch_dtype"] != "auto":
            self.torch_dtype = torch_dtype(settings["torch_dtype"])
        for name in ("id2label", "pruned_heads"):  # JSON can't have the numbers that are their keys
            if isinstance(settings.get(name), dict) and all(map(str.isdecimal, settings[name])):
                vars(self)[name] = {int(number): value for number, value in settings[name].items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these
            raise AttributeError(name)
        from shardload.transformers_shim.configuration_utils import PretrainedConfig

        where = f"config.json of {vars(self).get('_name_or_path')}"
        try:
            full = PretrainedConfig.from_dict(vars(self))
        except Exception as error:
            raise CorruptError(
                f"a setting has a value that no config can have:  {type(error).__name__}: {error}",
                where=where,
                cure=Cures("correct config.json", Wording("pass {config}", config=...)),
            ) from error
        if not hasattr(full, name):
            raise AttributeError(f"{where} does not say {name!r}", name=name, obj=self)
        self.__dict__ = dict(vars(full))  # Python 3.13.0 loses entries of one that another object brings
        self.__class__ = PretrainedConfig  # type: ignore[assignment]
        return getattr(self, name)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # its settings change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"


GIVEN = "given by the caller"


@dataclass(frozen=True)
class LoadedConfig:
    """A config object, and where its class came from, as people read it."""

    config: Any
    origin: str


def plain_config(source: Source, config_json: Mapping[str, Any] | None, dtype: Any) -> LoadedConfig:
    """Return config.json as a plain object; an object of defaults where there is none."""
    return LoadedConfig(PlainConfig(settings_of(source, config_json, dtype)), plain_origin(config_json))


def plain_origin(config_json: Mapping[str, Any] | None) -> str:
    """Return where a config came from that no class but ours made."""
    return "config.json" if config_json is not None else "no config.json: defaults only"


def with_dtype(config: Any, dtype: torch.dtype | None) -> Any:
    """Return the caller's config, or a copy of it with `torch_dtype` set where a dtype is asked for.

    A config that does not accept the attribute stays as it is.
    """
    if dtype is None:
        return config
    changed = copy.copy(config)
    if isinstance(changed, dict):
        changed["torch_dtype"] = dtype
        return changed
    try:
        changed.torch_dtype = dtype
    except (AttributeError, TypeError):
        return config
    return changed


def is_plain(
    model_class: object, config: Any, config_json: Mapping[str, Any] | None, keywords: Mapping[str, Any]
) -> bool:
    """Return whether nothing of the repo runs and no config class is asked: the caller's class gets a plain config."""
    if keywords.get("trust_remote_code") or "remote_base" in keywords:
        return False
    own_config = getattr(model_class, "config_class", None) is not None or "auto_map" in (config_json or {})
    return config is not None or not own_config


def given_class(model_class: object) -> tuple[str, str]:
    """Return the name of a caller's class or function, and where it came from, as people read it.

    Raises UsageError for a model: the config is not what it takes.
    """
    if not isinstance(model_class, type) and hasattr(model_class, "state_dict"):
        raise UsageError(
            f"a {type(model_class).__name__} is a model, and a class is wanted",
            where=keyword("model_class"),
            cure=f"pass {type(model_class).__name__}; or fill the model: fill(model, open_checkpoint(where))",
        )
    name = getattr(model_class, "__qualname__", type(model_class).__qualname__)
    return name, f"{getattr(model_class, '__module__', '?')}.{name} ({GIVEN})"


def called_with_config(model_class: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """Return a maker that calls the caller's class; one that takes no config is a UsageError."""

    def make(config: Any) -> nn.Module:
        try:
            return model_class(config)
        except TypeError as error:
            from shardload.remote_code.given_class import refused_config

            refused = refused_config(model_class, config, error)
            if refused is None:
                raise
            raise refused from error

    return make


def settings_of(source: Source, config_json: Mapping[str, Any] | None, dtype: Any) -> dict[str, Any]:
    """Return config.json's entries with what the load adds: where they came from, and the dtype that is asked for."""
    settings = dict(config_json or {})
    settings["_name_or_path"] = source.label if source.is_local else source.label.split("@")[0]
    if source.revision:
        settings["_commit_hash"] = source.revision
    if dtype is not None and dtype != "auto":
        settings["torch_dtype"] = _dtype(dtype)
        settings.pop("dtype", None)
    elif isinstance(settings.get("dtype"), str):
        settings.setdefault("torch_dtype", settings["dtype"])  # the name that transformers 5 writes
    if isinstance(settings.get("torch_dtype"), str) and settings["torch_dtype"] != "auto":
        # By torch's own name: the class may know no other.
        named = _dtype(settings["torch_dtype"], "config.json")
        settings["torch_dtype"] = str(named).removeprefix("torch.")
    return settings


def _dtype(dtype: Any, file: str | None = None) -> torch.dtype:
    """Return the torch dtype that a file, or else the caller, names."""
    try:
        return torch_dtype(dtype)
    except ValueError as error:
        kind, where = (CorruptError, f"{file}, torch_dtype") if file else (UsageError, keyword("dtype"))
        cure = "for example float16, bfloat16 or float32"
        raise kind(f"{dtype!r} is not a dtype of torch", where=where, cure=cure) from error
