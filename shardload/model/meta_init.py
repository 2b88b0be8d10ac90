"""Runs constructors so that parameters are created on the meta device: patches torch for the constructing thread."""

from __future__ import annotations

import functools
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shardload._system.gc_pause import gc_paused
from shardload.errors import MismatchError
from shardload.model.fast_registration import quick_ways

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def constructing() -> bool:
    """Whether this thread is inside `build_shell`, where initialising weights has no effect."""
    state = _current()
    return state is not None and not state.real


def begin_again() -> None:
    """Forget the parameters that a failed constructor made; call this before the constructor runs once more."""
    state = _current()
    if state is not None:
        state.created.clear()


_META = torch.device("meta")
_TENSORS = (torch.Tensor, nn.Parameter)
_UNINITIALISED = "_shardload_uninitialised"
_SMALL = 64 * 2**20  # bytes: no buffer is larger, and filling large parameters would cost time


class MarkUninitialised(TorchFunctionMode):
    """Marks tensors that come from torch.empty and similar functions: nothing has been written to them yet."""

    _MAKERS = frozenset({torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in self._MAKERS:
            setattr(made, _UNINITIALISED, True)
            if not made.is_meta and made.is_floating_point() and made.nbytes <= _SMALL:
                made.fill_(float("nan"))  # NaN marks a buffer; `_new_parameter` marks parameters
        return made


class _State:
    """The state of one construction: the parameters in the order of creation, and the ordinals of the real ones."""

    def __init__(self, real: frozenset[int], at_most: int | None = None) -> None:
        self.real = real
        self.at_most = at_most
        self.created: list[nn.Parameter] = []
        self.born: dict[int, nn.Module] = {}
        self._unwritten: dict[int, nn.Parameter] = {}

    def keeps(self, parameter: nn.Parameter) -> bool:
        """Whether the caller wants real memory for this parameter."""
        return any(self.created[ordinal] is parameter for ordinal in self.real if ordinal < len(self.created))

    def add(self, parameter: nn.Parameter) -> None:
        """Record a new parameter. Raises MismatchError past `at_most`: a config can ask for any number."""
        self.created.append(parameter)
        if self.at_most is not None and len(self.created) > self.at_most:
            raise MismatchError(
                f"the model has over {self.at_most:,} parameters, far more than its checkpoint has tensors",
                where="the config's numbers of layers and experts",
                cure="check them; or build the shell without a limit: build_shell(lambda: make(config))",
            )

    def unwritten(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a real parameter full of NaN in place of one on meta, without counting it as another new parameter."""
        if id(parameter) not in self._unwritten:
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            if values.is_floating_point():
                values.fill_(float("nan"))
            made = torch.Tensor._make_subclass(nn.Parameter, values, parameter.requires_grad)
            self._unwritten[id(parameter)] = made
        return self._unwritten[id(parameter)]


_local = threading.local()
_lock = threading.RLock()
_installed = 0
_originals: list[tuple[Any, str, Any]] = []
_ABSENT = object()


class _DefaultDtype:
    """Restores torch's default dtype, which all threads share, after code that may change it.

    The first block to begin records the dtype and the last one to end restores it, so a dtype that another thread has
    set for a while is never recorded. A block inside another block of its thread restores the dtype of the outer one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = torch.float32
        self._depth = threading.local()

    @contextmanager
    def kept(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_default_dtype()
            self._inside += 1
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        outer = torch.get_default_dtype()
        try:
            yield
        finally:
            self._depth.value = depth
            with self._lock:
                self._inside -= 1
                torch.set_default_dtype(outer if depth else self._before)


default_dtype_kept = _DefaultDtype().kept


def _current() -> _State | None:
    return getattr(_local, "state", None)


@contextmanager
def construction(real: frozenset[int] = frozenset(), at_most: int | None = None) -> Iterator[_State]:
    """Create parameters on the meta device on this thread, while the `with` block runs.

    `real` holds the ordinals of parameters that get real memory. Raises MismatchError when the block creates more than
    `at_most` parameters.
    """
    previous = _current()
    _install()
    _local.state = state = _State(real, at_most)
    try:
        with default_dtype_kept(), gc_paused():
            yield state
    finally:
        _local.state = previous
        _uninstall()


def _install() -> None:
    """Patch torch while at least one thread constructs; all other threads keep torch's own behaviour."""
    global _installed  # noqa: PLW0603
    with _lock:
        _installed += 1
        if _installed > 1:
            return
        _replace(nn.Parameter, "__new__", staticmethod(_new_parameter(nn.Parameter.__new__)))
        _replace(nn.Module, "_apply", _apply_on_meta(nn.Module._apply))
        _replace(nn.Module, "to_empty", _to_empty_on_meta(nn.Module.to_empty))
        for name in _initialisers():
            _replace(nn.init, name, _free_on_meta(getattr(nn.init, name)))
        for name, quick in quick_ways().items():
            _replace(nn.Module, name, quick)
        _replace(nn.Module, "__init__", _noted(nn.Module.__init__))
        _replace(nn.Parameter, "device", property(_device_of))
        for name in ("to", "cpu", "cuda"):
            _replace(torch.Tensor, name, _moved_on_meta(getattr(torch.Tensor, name)))


def _uninstall() -> None:
    global _installed  # noqa: PLW0603
    with _lock:
        _installed -= 1
        if _installed == 0:
            while _originals:
                owner, name, original = _originals.pop()
                if original is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)


def _replace(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, owner.__dict__.get(name, _ABSENT)))
    setattr(owner, name, value)


def _initialisers() -> list[str]:
    return [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]


def _noted(original: Callable[..., None]) -> Callable[..., None]:
    """Record which modules the constructor makes: a module that existed before keeps its parameters."""

    @functools.wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        state = _current()
        if state is not None:
            state.born[id(self)] = self
        original(self, *args, **kwargs)

    return init


def _device_of(parameter: nn.Parameter) -> torch.device:
    """Return "cpu" for a parameter on meta: a table that a class computes on the device of its weight has to be real.

    Code of torch gets the true device: some of its kernels for meta tensors are Python and read this property.
    """
    device: torch.device = torch.Tensor.device.__get__(parameter)
    if device.type != "meta" or _current() is None:
        return device
    asking = str(sys._getframe(1).f_globals.get("__name__"))
    return device if asking.startswith("torch._") else torch.device("cpu")


def _new_parameter(original: Callable[..., nn.Parameter]) -> Callable[..., nn.Parameter]:
    """Create parameters on meta; a real tensor that a parameter is made from is freed at once."""

    @functools.wraps(original)
    def new(
        cls: type[nn.Parameter],
        data: torch.Tensor | None = None,
        requires_grad: bool = True,
        **more: Any,
    ) -> nn.Parameter:
        state = _current()
        if state is None or type(data) not in _TENSORS:
            return original(cls, data, requires_grad, **more)
        assert data is not None
        if not data.is_meta:
            if len(state.created) not in state.real:
                data = torch.empty_like(data, device=_META)
            elif getattr(data, _UNINITIALISED, False) and data.is_floating_point():
                data.fill_(float("nan"))
        parameter = original(cls, data, requires_grad, **more)
        state.add(parameter)
        return parameter

    return new


def _apply_on_meta(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make `.to(device)`, `.cuda()` and the like leave parameters on meta, and change only their dtype."""

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
                # A meta tensor has no values to copy. Applied to an empty real tensor, `fn` shows which dtype it wants.
                return tensor.to(fn(torch.empty(0, dtype=tensor.dtype)).dtype)

        safe._shardload_meta = True  # type: ignore[attr-defined]
        return original(self, safe, recurse)

    return apply


def _moved_on_meta(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make `to`, `cpu` and `cuda` leave a tensor on meta, and change only its dtype.

    Constructors that quantise move weights, and tensors that they compute from weights, between devices. On a machine
    without CUDA, `.cuda()` leaves a computed table on the CPU.
    """

    @functools.wraps(original)
    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _current() is None:
            return original(self, *args, **kwargs)
        on_meta = torch.Tensor.device.__get__(self).type == "meta"
        if not on_meta and (original.__name__ != "cuda" or torch.cuda.is_available()):
            return original(self, *args, **kwargs)
        asked = [*args, *kwargs.values()]
        other = next((one.dtype for one in asked if isinstance(one, torch.Tensor)), self.dtype)
        dtype = next((one for one in asked if isinstance(one, torch.dtype)), other)
        return self if dtype == self.dtype else self.type(dtype)

    return moved


def _to_empty_on_meta(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make `to_empty`, and with it `skip_init`, leave parameters on meta.

    torch's own `to_empty` makes real parameters by `empty_like(meta, device="cpu")`, whose Python kernel imports sympy:
    0.35 s of a ChatGLM load of 0.56 s.
    """

    @functools.wraps(original)
    def to_empty(self: nn.Module, *, device: Any, recurse: bool = True) -> nn.Module:
        state = _current()
        if state is None:
            return original(self, device=device, recurse=recurse)
        for module in self.modules() if recurse else (self,):
            for name, parameter in module._parameters.items():
                if parameter is not None and state.keeps(parameter):
                    module._parameters[name] = state.unwritten(parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        return self

    return to_empty


def _free_on_meta(original: Callable[..., Any]) -> Callable[..., Any]:
    """Skip an initialiser for a tensor on meta, which saves half of the remaining time of a shell."""

    @functools.wraps(original)
    def initialise(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if _current() is not None and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return original(tensor, *args, **kwargs)

    return initialise
