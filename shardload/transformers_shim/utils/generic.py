"""`transformers.utils.generic`: model outputs, and the enumerations that old code imports."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections import OrderedDict
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class ExplicitEnum(str, Enum):
    """A string enumeration whose error for an unknown value lists the known ones."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        known = [member.value for member in cls]
        raise ValueError(f"{value} is not a valid {cls.__name__}; choose one of {known}")


class PaddingStrategy(ExplicitEnum):
    """How a batch of sequences is padded."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TensorType(ExplicitEnum):
    """The kinds of tensors that a tokenizer can return."""

    PYTORCH = "pt"
    TENSORFLOW = "tf"
    NUMPY = "np"
    JAX = "jax"


class LossKwargs(TypedDict, total=False):
    """Keyword arguments that a model passes on to its loss."""

    num_items_in_batch: Any


class TransformersKwargs(TypedDict, total=False):
    """Keyword arguments that a model's forward passes on, in code since 4.53."""

    num_items_in_batch: Any
    output_hidden_states: bool | None
    output_attentions: bool | None
    output_router_logits: bool | None
    cu_seq_lens_q: Any
    cu_seq_lens_k: Any
    max_length_q: int | None
    max_length_k: int | None


class ContextManagers:
    """Several context managers as one; they exit in the opposite order."""

    def __init__(self, context_managers: list[Any]) -> None:
        self.context_managers = context_managers
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        for manager in self.context_managers:
            self.stack.enter_context(manager)

    def __exit__(self, *args: object) -> None:
        self.stack.__exit__(*args)  # type: ignore[arg-type]


def can_return_tuple(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a `forward` that returns a ModelOutput: with `return_dict=False` it returns a tuple.

    By default the config's `return_dict` decides, as in 4.51 and later.
    """

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("return_dict", None)
        config = getattr(self, "config", None)
        as_output = getattr(config, "return_dict", True) if asked is None else asked
        output = forward(self, *args, **kwargs)
        return output if as_output or isinstance(output, tuple) else output.to_tuple()

    return wrapper


def filter_out_non_signature_kwargs(extra: list[str] | None = None) -> Callable[[Any], Any]:
    """Return a decorator that drops keyword arguments that a function does not name, with a warning."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        named = {*inspect.signature(function).parameters, *(extra or ())}

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            unknown = [name for name in kwargs if name not in named]
            if unknown:
                text = f"{function.__qualname__} takes no {', '.join(unknown)}: left out"
                warnings.warn(text, UserWarning, stacklevel=2)
            return function(*args, **{name: value for name, value in kwargs.items() if name in named})

        return wrapper

    return decorate


def torch_int(x: Any) -> Any:
    """Return a number as an int; under tracing, a tensor as an int64 tensor."""
    return x.to(torch.int64) if isinstance(x, torch.Tensor) and _is_tracing() else int(x)


def torch_float(x: Any) -> Any:
    """Return a number as an int, as transformers does; under tracing, a tensor as a float32 tensor."""
    return x.to(torch.float32) if isinstance(x, torch.Tensor) and _is_tracing() else int(x)


def _is_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


class ModelOutput(OrderedDict[Any, Any]):
    """A dataclass that is also an ordered dictionary and a tuple of its fields that are not None.

    A string as index returns a field; an integer or a slice indexes `to_tuple()`. Subclasses
    are dataclasses, and each is a node of torch's pytree.
    """

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(  # type: ignore[no-untyped-call, unused-ignore]
            cls,
            _flatten,
            functools.partial(_unflatten, kind=cls),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __post_init__(self) -> None:
        """Fill the dictionary from the dataclass's fields, or from a first field that holds pairs."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        values = [getattr(self, name) for name in names]
        first, rest = values[0], values[1:]
        if first is not None and not isinstance(first, torch.Tensor) and all(v is None for v in rest):
            pairs = _pairs(first)
            if pairs is not None:
                setattr(self, names[0], None)
                for name, value in pairs:
                    self[name] = value
                return
        for name, value in zip(names, values, strict=True):
            if value is not None:
                self[name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        # As in transformers, a field that was None stays out of the dictionary when it is assigned later.
        if value is not None and name in self.keys():
            super().__setitem__(name, value)
        object.__setattr__(self, name, value)

    def __delitem__(self, *_args: Any, **_kwargs: Any) -> None:
        raise _fixed(self, "deleting from")

    def setdefault(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: the fields of an output are fixed."""
        raise _fixed(self, "setdefault on")

    def pop(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: the fields of an output are fixed."""
        raise _fixed(self, "pop from")

    def update(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the fields of an output are fixed."""
        raise _fixed(self, "update of")

    def __reduce__(self) -> tuple[Any, ...]:
        if not hasattr(type(self), "__dataclass_fields__"):
            return super().__reduce__()  # type: ignore[return-value, unused-ignore]
        return (type(self), tuple(getattr(self, field.name) for field in fields(self)))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values of the fields that are not None, in order."""
        return tuple(self[name] for name in self)


def _pairs(first: Any) -> Iterable[tuple[str, Any]] | None:
    """Return the pairs in a first field (a mapping or a list of pairs), or None without any."""
    if isinstance(first, dict):
        return list(first.items())
    try:
        items = list(first)
    except TypeError:
        return None
    if items and all(isinstance(i, (tuple, list)) and len(i) == 2 and isinstance(i[0], str) for i in items):
        return [(name, value) for name, value in items]
    return None


def _fixed(output: ModelOutput, action: str) -> TypeError:
    return TypeError(f"{action} a {type(output).__name__} is not possible: its fields are fixed")


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output.keys())


def _unflatten(values: Iterable[Any], names: list[str], *, kind: type[ModelOutput]) -> ModelOutput:
    return kind(**dict(zip(names, values, strict=True)))
