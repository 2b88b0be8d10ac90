"""The base class of configs in the spelling of transformers 5: class annotations are settings.

`PreTrainedConfig` (capital T) tells such a file from code for transformers 4. Here it is the stand-in's
`PretrainedConfig`, so that a repo's code finds what it reads of a config: old defaults, `rope_theta`, `torch_dtype`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

from shardload.library_parts.importer import part_module
from shardload.transformers_shim.configuration_utils import PretrainedConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_RENAMED_LAYERS = {
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "mamba": "linear_attention",
    "qwen_sparse_attention": "indexed_attention",
}
# Settings that releases of 4 read at the top of a config, and 5 in `rope_parameters`.
_OLD_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
# What every config has; the class's own setting of that name is not to be overwritten by the default for all.
_OF_EVERY_CONFIG = frozenset(name for name in vars(PretrainedConfig()) if not name.startswith("_"))


class SubConfigSpec:
    """How a config's part is made of what config.json says of it: by a class of its own, or by its `model_type`."""

    def __init__(
        self,
        config_class: Any,
        model_type: str | None = None,
        init_kwargs: dict[str, Any] | None = None,
        optional: bool = False,
    ) -> None:
        self.init_kwargs = init_kwargs or {}
        self.config_class = config_class
        self.optional = optional
        self.model_type = config_class.model_type if model_type is None else model_type

    def get_config_class(self, model_type: str | None = None) -> Any:
        """Return the class of a `model_type`, by default of this part's."""
        from shardload.library_parts.auto_tables import config_class_of

        return config_class_of(str(self.model_type if model_type is None else model_type))

    def create_subconfig(self, key: str, subconfig: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Return (the part's config, the keyword arguments that are left)."""
        if isinstance(subconfig, PretrainedConfig):
            return subconfig, kwargs
        if key == "backbone_config":
            made: tuple[Any, dict[str, Any]] = part_module(
                "backbone_utils"
            ).consolidate_backbone_kwargs_to_config(
                backbone_config=subconfig,
                default_config_type=self.model_type,
                default_config_kwargs=self.init_kwargs,
                **kwargs,
            )
            return made
        settings = self.init_kwargs if subconfig is None else subconfig
        if not isinstance(settings, dict):
            raise TypeError(f"{key} is a {type(settings).__name__}, and not a config or its settings")
        kind = self.config_class
        if not issubclass(kind, PretrainedConfig):
            kind = self.get_config_class(settings.get("model_type") if subconfig is not None else None)
        return kind(**settings), kwargs

    @property
    def default_config(self) -> Any:
        """The part's config where nothing is said of it."""
        return self.get_config_class()(**self.init_kwargs)


def remap_legacy_layer_types(layer_types: list[str] | None = None, config: Any = None) -> list[str] | None:
    """Return the kinds of layers under their present names; of a config, change them in place."""
    if layer_types is not None:
        return [_RENAMED_LAYERS.get(kind, kind) for kind in layer_types]
    for name in ("layer_types", "mtp_layer_types"):
        listed = getattr(config, name, None)
        if listed is not None and (renamed := [_RENAMED_LAYERS.get(kind, kind) for kind in listed]) != listed:
            setattr(config, name, renamed)
    return None


def strict(cls: Any = None, **_options: Any) -> Any:
    """Return the class as it is: a published config.json is read as its author's release read it, unchecked."""
    return (lambda decorated: decorated) if cls is None else cls


def as_validated_field(_validator: Any) -> Any:
    """Return a maker of fields of a config, which are not checked either."""

    def made(default: Any = dataclasses.MISSING, **options: Any) -> Any:
        return dataclasses.field(default=default, **options)

    return made


class _OfTheClass(property):
    """A property of the class itself."""

    def __get__(self, _instance: Any, owner: Any = None) -> Any:
        assert self.fget is not None
        return self.fget(owner)


@functools.cache
def config_base() -> Any:
    """Return `PreTrainedConfig`; the library's own mixin makes the settings of rotary embeddings."""
    rotary = part_module("modeling_rope_utils").RotaryEmbeddingConfigMixin
    # The stand-in has one for configs of 4.x, which does nothing.
    standardize = rotary.standardize_rope_params
    return dataclasses.make_dataclass(
        "PreTrainedConfig",
        [],
        bases=(_Fields, rotary),
        namespace={
            "__module__": __name__,
            "__doc__": _Fields.__doc__,
            "standardize_rope_params": standardize,
        },
        init=False,
        repr=False,
        eq=False,
    )


@dataclasses.dataclass(init=False, repr=False, eq=False)
class _Fields(PretrainedConfig):
    """A config whose class annotations are its settings, with their defaults; further keywords become attributes."""

    base_config_key: ClassVar[str] = ""
    sub_configs_defaults: ClassVar[dict[str, Any]] = {}
    is_heterogeneous: ClassVar[bool] = False
    # Read before the base's own constructor runs.
    id2label: Any = None
    label2id: Any = None
    problem_type: Any = None
    output_hidden_states: Any = False
    return_dict: Any = True
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False

    convert_rope_params_to_dict: ClassVar[Callable[..., dict[str, Any]]]
    nested_rope_parameter_keys: ClassVar[Callable[..., list[str]]]
    _is_made: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("sub_configs_defaults")
        if own is not None:
            cls.sub_configs_defaults = {
                key: spec if isinstance(spec, SubConfigSpec) else SubConfigSpec(spec)
                for key, spec in own.items()
            }
        if cls.__name__ != "PreTrainedConfig":
            dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)

    def __init__(self, **kwargs: Any) -> None:
        for field in dataclasses.fields(self):
            if field.name in kwargs:
                value = kwargs.pop(field.name)
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                value = field.default
            else:
                raise TypeError(f"{type(self).__name__} needs {field.name}")
            setattr(self, field.name, value)
        self.__post_init__(**kwargs)
        vars(self)["_is_made"] = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Make parts and rotary settings of what was given, then set what every config has."""
        for key, spec in self.sub_configs_defaults.items():
            given = getattr(self, key)
            if given is not None or not spec.optional:
                made, kwargs = spec.create_subconfig(key, given, **kwargs)
                setattr(self, key, made)
        dtype = kwargs.pop("dtype", None)
        if dtype is not None:
            kwargs["torch_dtype"] = dtype
        if hasattr(self, "rope_parameters") or (kwargs.get("rope_scaling") and kwargs.get("rope_theta")):
            kwargs = self._with_rotary_settings(kwargs)
        own = {self.attribute_map.get(name, name) for name in vars(self)}
        for name in _OF_EVERY_CONFIG:
            if self.attribute_map.get(name, name) in own:
                kwargs.setdefault(name, getattr(self, name))
        kwargs.setdefault("tie_word_embeddings", False)  # a class that ties says so
        if kwargs.get("num_labels") is not None and self.id2label is None:
            kwargs.pop("id2label", None)
        PretrainedConfig.__init__(self, **self._settable(kwargs))
        remap_legacy_layer_types(config=self)

    def _with_rotary_settings(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords with `rope_theta` and `rope_scaling` beside the new `rope_parameters`."""
        old = {name: kwargs[name] for name in ("rope_theta", "rope_scaling") if name in kwargs}
        if isinstance(old.get("rope_scaling"), dict):
            kwargs = {**kwargs, "rope_scaling": dict(old["rope_scaling"])}  # it is filled in place
        rest = self.convert_rope_params_to_dict(**kwargs)
        made = getattr(self, "rope_parameters", None) or {}
        scaled = made.get("rope_type", "default") != "default"
        old.setdefault("rope_theta", made.get("rope_theta", getattr(self, "rope_theta", None)))
        old.setdefault("rope_scaling", made if scaled else None)
        return {**rest, **{name: value for name, value in old.items() if name not in vars(type(self))}}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OLD_ROTARY and self._is_made:
            self._follow(name, value)

    def _follow(self, name: str, value: Any) -> None:
        """Let `rope_parameters` follow an older setting that code changes afterwards, as releases of 4 read it."""
        now = getattr(self, "rope_parameters", None)
        if not isinstance(now, dict) or self.nested_rope_parameter_keys(now):
            return
        if name == "rope_scaling":
            kept = {key: now[key] for key in _OLD_ROTARY if key in now}
            value = value or {}
            self.rope_parameters = {
                **kept,
                **value,
                "rope_type": value.get("rope_type", value.get("type", "default")),
            }
        else:
            self.rope_parameters = {**now, name: value}
        self.standardize_rope_params()

    def _settable(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords without those that are read-only properties of the class."""
        found = {}
        for name, value in kwargs.items():
            kind = getattr(type(self), name, None)
            if not (isinstance(kind, property) and kind.fset is None):
                found[name] = value
        return found

    sub_configs = _OfTheClass(
        lambda cls: {key: spec.config_class for key, spec in cls.sub_configs_defaults.items()}
    )

    @property
    def dtype(self) -> Any:
        """The dtype that config.json names, as `torch_dtype`."""
        return self.torch_dtype

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self.torch_dtype = value

    @property
    def _attn_implementation(self) -> str:
        return self._attn_implementation_internal or "eager"

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        own = value.get("", self._attn_implementation_internal) if isinstance(value, dict) else value
        self._attn_implementation_internal = own
        for key in self.sub_configs:
            part = getattr(self, key, None)
            if part is not None:
                part._attn_implementation = (
                    value.get(key, part._attn_implementation_internal) if isinstance(value, dict) else value
                )
