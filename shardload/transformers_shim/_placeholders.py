"""Placeholders for classes and functions of transformers that the stand-in lacks: using one raises its name."""

from __future__ import annotations

import abc
import functools
import re
from typing import TYPE_CHECKING, Any, NoReturn

from shardload.transformers_shim._missing import MissingAttributeError, MissingFromShimError, lacking

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE = re.compile(r"is_\w+_available|is_\w*greater_or_equal\w*|is_\w+_less_than\w*")
_TORCH_PROBE = re.compile(r"is_torch_(greater_or_equal|less)_than_(\d+)_(\d+)")
_MODEL_BASE = re.compile(r"[A-Z]\w*(?:Config|PreTrainedModel)")
# Names of the same form in the top module that belong to no model: ways to quantize, to watermark, to export.
_NO_MODEL = re.compile(
    r"(Aqlm|Awq|BitNetQuant|BitsAndBytes|CompressedTensors|Eetq|Fbgemm|FineGrained|FPQuant|Generation|GPTQ|Higgs|Hqq"
    r"|Mxfp4|Onnx|Quanto|Quark|SpQR|SynthIDText|TorchAo|Vptq|Watermarking)\w*Config"
)
# Of the auto classes, the class for each config; and tables of the old example tasks, which code adds its own to.
_TABLE = re.compile(r"[A-Z][A-Z_]*_MAPPING(?:_NAMES)?")
_TASKS = re.compile(r"(?:glue|xnli)_(?:processors|output_modes|tasks_num_labels)")
_DOCUMENTATION: dict[str, Any] = {"DOCSTRING": "", "_FOR_DOC": "", "ARCHIVE_LIST": (), "ARCHIVE_MAP": {}}


class _Unavailable:
    """The result of an unknown probe: False, called or as a value."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __bool__(self) -> bool:
        return False

    def __call__(self, *_args: Any, **_kwargs: Any) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<transformers' {self.__name__}: not available>"


class _Table(dict[Any, Any]):
    """A table of classes by name only: any lookup raises an error with that name."""

    def __init__(self, full: str) -> None:
        super().__init__()
        self._full = full

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise lacking(MissingFromShimError, self._full)

    __contains__ = __getitem__ = __iter__ = __len__ = get = items = keys = values = _refuse


class PlaceholderType(abc.ABCMeta):
    """The class of placeholders: a lookup of an attribute that no subclass defines raises the placeholder's name."""

    def __getattr__(cls, name: str) -> Any:
        # Python, inspect, dataclasses and torch look for names with underscores on classes; the code does not ask.
        if name.startswith("_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        asked = next(base for base in cls.__mro__ if "_placeholder_for" in vars(base))
        raise lacking(MissingAttributeError, f"{vars(asked)['_placeholder_for']}.{name}")


def is_probe(name: str) -> bool:
    """Return whether a name is that of an unknown probe, whose result is False."""
    return _PROBE.fullmatch(name) is not None and _TORCH_PROBE.fullmatch(name) is None


def is_model_base(module: str, name: str) -> bool:
    """Return whether a name is one model's config class or base class, for which the general ones stand."""
    if not module and _NO_MODEL.match(name):
        return False
    return (not module or module.startswith("models.")) and _MODEL_BASE.fullmatch(name) is not None


def is_torch_probe(name: str) -> bool:
    """Return whether a name is a probe for a version of torch, whose result is the truth."""
    return _TORCH_PROBE.fullmatch(name) is not None


def probe(name: str) -> Any:
    """Return the result of a probe that the stand-in does not know (the truth about torch); None for other names."""
    about_torch = _TORCH_PROBE.fullmatch(name)
    if about_torch:
        import torch

        at_least = _version(torch.__version__) >= (int(about_torch[2]), int(about_torch[3]))
        return at_least if about_torch[1] == "greater_or_equal" else not at_least
    return _Unavailable(name) if _PROBE.fullmatch(name) else None


@functools.cache
def placeholder(module: str, name: str) -> Any:
    """Return the placeholder for `name` of a module of transformers, the same object each time; None without one.

    The general classes stand for the config class and the base class of a model (`_model_bases.py`). Any other class
    can be imported, subclassed and used in isinstance; constructing it or a subclass raises. Texts for documentation
    are empty. A function of a single model's module, or of the module of downloads, can be imported and raises when it
    is called.
    """
    for ending, text in _DOCUMENTATION.items():
        if name.endswith(ending):
            return type(text)(text)
    bare = name.lstrip("_")
    home = "models.auto" if _TABLE.fullmatch(name) else "data" if _TASKS.fullmatch(name) else None
    if home is not None and (not module or module.startswith(home)):
        return _Table(f"transformers.{module}.{name}" if module else f"transformers.{name}")
    full = f"transformers.{module}.{name}" if module else f"transformers.{name}"
    if is_model_base(module, name):
        # late: telling what a repo asks for needs no torch
        from shardload.transformers_shim._model_bases import model_base

        return model_base(name, full)
    if bare[:1].isupper() and not bare.isupper():
        return _class(name, full)
    if module.startswith(("models.", "utils.hub", "data")) and bare[:1].islower():
        return _function(name, full)
    return None


def placeholder_of_any(module: str, name: str) -> Any:
    """Return the placeholder for any name, a probe's False or else a function where nothing says what it is."""
    found = probe(name)
    found = placeholder(module, name) if found is None else found
    return _function(name, f"transformers.{module}.{name}") if found is None else found


def _class(name: str, full: str) -> type[Any]:
    def refuse(cls: type[Any], *_args: Any, **_kwargs: Any) -> NoReturn:
        used = "" if cls.__name__ == name else f" (as the base of {cls.__name__})"
        raise lacking(MissingFromShimError, full + used)

    body = {
        "__new__": refuse,
        "__module__": full.rpartition(".")[0],
        "__doc__": f"Stands for {full}: constructing it raises an error that names it.",
        "_placeholder_for": full,
    }
    return PlaceholderType(name, (), body)


def _function(name: str, full: str) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise lacking(MissingFromShimError, full)

    refuse.__name__ = refuse.__qualname__ = name
    return refuse


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
