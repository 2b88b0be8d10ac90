"""config.json as a plain object, for models that run no code of the repo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError, Cures, Wording

if TYPE_CHECKING:
    from collections.abc import Mapping


class PlainConfig:
    """The entries of config.json as attributes; `torch_dtype` is a torch dtype, or None.

    Classes written for transformers also read what config.json does not say: methods (`to_dict`) and old defaults
    (`use_cache`). At the first such lookup the object becomes the stand-in's PretrainedConfig, which has all of these.
    A class that reads only what config.json says needs no file of the stand-in.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        vars(self).update({"torch_dtype": None, **settings})
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
        self.__dict__ = vars(full)
        self.__class__ = PretrainedConfig  # type: ignore[assignment]
        return getattr(self, name)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # its settings change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"
