"""build_shell: the right modules and shapes; parameters take no memory, everything computed is real."""

from __future__ import annotations

import functools
import gc
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shardload.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SlotKind = Literal["parameter", "buffer", "computed"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one tensor in a model.

    `kind` is "parameter", "buffer" (persistent: a checkpoint holds it) or "computed" (a non-persistent buffer or
    a plain tensor attribute: the class computes it, and a stored copy does not replace it).
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: SlotKind


@dataclass
class Shell:
    """A model whose parameters are on meta. `slots` lists every tensor by name; `ties` the names that share one.

    `make` is kept: parameters that a checkpoint is allowed to lack are computed by running it again. `created`
    are the parameters in the order in which the constructor made them.
    """

    model: nn.Module
    make: Callable[[], nn.Module] | None = None
    slots: dict[str, Slot] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    created: list[nn.Parameter] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, model: nn.Module, make: Callable[[], nn.Module] | None = None) -> Shell:
        """Survey an existing model, whatever its parameters hold."""
        slots, ties = survey(model)
        return cls(model, make, slots, ties)


def build_shell(make: Callable[[], nn.Module]) -> Shell:
    """Run `make()` so that every parameter lands on the meta device and every computed tensor is real.

    Whatever the constructor does (`skip_init`, `to_empty`, `.half()`, `nn.init`, parameters made from real
    tensors), parameters take no memory; buffers and plain tensor attributes hold what the class computed, in
    the dtype that it chose. Other threads are not affected, and torch's default dtype is put back. Raises
    UsageError when `make` gives no module, UnsupportedError when it looks at the values of its parameters.
    """
    with _construction() as state:
        model = _made(make)
        _sweep(model)
        shell = Shell.of(model, make)
        shell.created = state.created
    return shell


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        model = make()
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        raise UnsupportedError(
            f"the constructor looks at the values of its parameters, and a shell has none: {error}",
            cure="build the module for real and pass that: fill(module, open_checkpoint(where))",
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"what should make the model made a {type(model).__name__}",
            cure="pass a class or a function that returns an nn.Module",
        )
    return model


def rebuild_with(make: Callable[[], nn.Module], real: set[int]) -> nn.Module:
    """Run `make()` once more, leaving the parameters of the given ordinals as the class initialises them.

    The n-th Parameter that a constructor creates is the same one in every run: `Shell.created` has the order.
    Memory that a constructor leaves uninitialised is filled with NaN, so that it can be told.
    """
    with _construction(frozenset(real)), _MarkUninitialised():
        return make()


def constructing() -> bool:
    """Whether this thread is inside `build_shell`: weight initialisation would be thrown away."""
    state = _current()
    return state is not None and not state.real


def survey(model: nn.Module) -> tuple[dict[str, Slot], tuple[tuple[str, ...], ...]]:
    """Return every slot of a model by its state-dict name, and the groups of names that share one tensor."""
    slots: dict[str, Slot] = {}
    owners: dict[int, list[str]] = {}
    for path, module in modules_of(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                slots[path + name] = Slot(path + name, parameter.dtype, _shape(parameter), "parameter")
                owners.setdefault(id(parameter), []).append(path + name)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                persistent = name not in module._non_persistent_buffers_set
                kind: SlotKind = "buffer" if persistent else "computed"
                slots[path + name] = Slot(path + name, buffer.dtype, _shape(buffer), kind)
                if persistent:
                    owners.setdefault(id(buffer), []).append(path + name)
        for name, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                slots.setdefault(path + name, Slot(path + name, value.dtype, _shape(value), "computed"))
    return slots, tuple(tuple(names) for names in owners.values() if len(names) > 1)


def modules_of(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its state-dict prefix ("", "layers.0.", …), a shared module once a path."""
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None:
            yield from modules_of(child, f"{prefix}{name}.")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    # A lazy parameter has no shape before its first forward; its own loader judges it.
    return () if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


# --- construction: what is different on this thread while make() runs ------------------------------------------


_UNINITIALISED = "_shardload_uninitialised"


class _MarkUninitialised(TorchFunctionMode):
    """Marks tensors that come from torch.empty and its kin: nothing has been written to them yet."""

    _MAKERS = frozenset({torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in self._MAKERS:
            setattr(made, _UNINITIALISED, True)
        return made


class _State:
    def __init__(self, real: frozenset[int]) -> None:
        self.real = real
        self.created: list[nn.Parameter] = []


_local = threading.local()
_lock = threading.RLock()
_installed = 0
_default_dtype = torch.float32
_originals: list[tuple[Any, str, Any]] = []


def _current() -> _State | None:
    return getattr(_local, "state", None)


@contextmanager
def _construction(real: frozenset[int] = frozenset()) -> Iterator[_State]:
    """Make parameters land on meta on this thread.

    The cyclic garbage collector is paused: with many small modules it took two thirds of the time (46,000
    modules: 6.9 s, 2.1 s without it).
    """
    previous = _current()
    collecting = gc.isenabled()
    default_dtype = _install()
    if previous is not None:
        default_dtype = torch.get_default_dtype()  # an inner construction gives back what the outer one chose
    gc.disable()
    _local.state = state = _State(real)
    try:
        yield state
    finally:
        _local.state = previous
        if collecting:
            gc.enable()
        torch.set_default_dtype(default_dtype)
        _uninstall()


def _install() -> torch.dtype:
    """Patch torch while at least one thread constructs. Threads that don't see the original behaviour.

    Returns the default dtype from before: it is one for all threads, and while one of them constructs a model
    in half precision another must not take that for what has to be put back.
    """
    global _installed, _default_dtype  # noqa: PLW0603
    with _lock:
        _installed += 1
        if _installed > 1:
            return _default_dtype
        _default_dtype = torch.get_default_dtype()
        _replace(nn.Parameter, "__new__", staticmethod(_new_parameter(nn.Parameter.__new__)))
        _replace(nn.Module, "_apply", _apply_on_meta(nn.Module._apply))
        for name in _initialisers():
            _replace(nn.init, name, _free_on_meta(getattr(nn.init, name)))
        return _default_dtype


def _uninstall() -> None:
    global _installed  # noqa: PLW0603
    with _lock:
        _installed -= 1
        if _installed == 0:
            while _originals:
                owner, name, original = _originals.pop()
                setattr(owner, name, original)


def _replace(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, owner.__dict__[name]))
    setattr(owner, name, value)


def _initialisers() -> list[str]:
    return [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]


def _new_parameter(original: Callable[..., nn.Parameter]) -> Callable[..., nn.Parameter]:
    """Put what a Parameter is made from on meta; the real tensor, if there was one, is freed at once."""

    @functools.wraps(original)
    def new(
        cls: type[nn.Parameter],
        data: torch.Tensor | None = None,
        requires_grad: bool = True,
        **more: Any,
    ) -> nn.Parameter:
        state = _current()
        if state is None or type(data) not in (torch.Tensor, nn.Parameter):
            return original(cls, data, requires_grad, **more)
        assert data is not None
        if not data.is_meta:
            if len(state.created) not in state.real:
                data = torch.empty_like(data, device="meta")
            elif getattr(data, _UNINITIALISED, False) and data.is_floating_point():
                data.fill_(float("nan"))
        parameter = original(cls, data, requires_grad, **more)
        state.created.append(parameter)
        return parameter

    return new


def _apply_on_meta(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let `.to(device)`, `.cuda()` and the like pass over parameters on meta, keeping the dtype they ask for."""

    @functools.wraps(original)
    def apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        if _current() is None or hasattr(fn, "_shardload_meta"):
            return original(self, fn, recurse)

        def safe(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_meta:
                return fn(tensor)
            try:
                return fn(tensor)
            except NotImplementedError:
                # A meta tensor can't be copied out. An empty real one tells which dtype is wanted.
                return tensor.to(fn(torch.empty(0, dtype=tensor.dtype)).dtype)

        safe._shardload_meta = True  # type: ignore[attr-defined]
        return original(self, safe, recurse)

    return apply


def _free_on_meta(original: Callable[..., Any]) -> Callable[..., Any]:
    """Skip an initialiser for a tensor on meta: half of what is left of a shell's time."""

    @functools.wraps(original)
    def initialise(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if _current() is not None and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return original(tensor, *args, **kwargs)

    return initialise


def _sweep(model: nn.Module) -> None:
    """Put parameters on meta that came another way than `nn.Parameter(...)`; ties stay ties."""
    moved: dict[int, nn.Parameter] = {}
    for _, module in modules_of(model):
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.is_meta or nn.parameter.is_lazy(parameter):
                continue
            if id(parameter) not in moved:
                on_meta = torch.empty_like(parameter, device="meta")
                moved[id(parameter)] = nn.Parameter(on_meta, requires_grad=parameter.requires_grad)
            module._parameters[name] = moved[id(parameter)]
