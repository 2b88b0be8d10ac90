"""Construction: what is different on a thread while a model's constructor runs, so that parameters land on meta."""

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
    """Whether this thread is inside `build_shell`: weight initialisation would be thrown away."""
    state = _current()
    return state is not None and not state.real


def begin_again() -> None:
    """Forget the parameters of a constructor that failed and is about to be run once more."""
    state = _current()
    if state is not None:
        state.created.clear()


_META = torch.device("meta")
_TENSORS = (torch.Tensor, nn.Parameter)
_UNINITIALISED = "_shardload_uninitialised"
_SMALL = 64 * 2**20  # bytes: buffers are no larger, and large parameters would cost time


class MarkUninitialised(TorchFunctionMode):
    """Marks tensors that come from torch.empty and its kin: nothing has been written to them yet."""

    _MAKERS = frozenset({torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in self._MAKERS:
            setattr(made, _UNINITIALISED, True)
            if not made.is_meta and made.is_floating_point() and made.nbytes <= _SMALL:
                made.fill_(float("nan"))  # a buffer is told by it; a parameter is marked when it is made
        return made


class _State:
    """One construction: the parameters in the order in which they are made, and those that are to be real."""

    def __init__(self, real: frozenset[int], at_most: int | None = None) -> None:
        self.real = real
        self.at_most = at_most
        self.created: list[nn.Parameter] = []
        self.born: dict[int, nn.Module] = {}
        self._unwritten: dict[int, nn.Parameter] = {}

    def keeps(self, parameter: nn.Parameter) -> bool:
        """Whether this is one of the parameters that are to be real."""
        return any(self.created[ordinal] is parameter for ordinal in self.real if ordinal < len(self.created))

    def add(self, parameter: nn.Parameter) -> None:
        """Note a parameter that was made. Raises MismatchError past `at_most`: a config can ask for any number."""
        self.created.append(parameter)
        if self.at_most is not None and len(self.created) > self.at_most:
            raise MismatchError(
                f"the model has over {self.at_most:,} parameters, far more than its checkpoint has tensors",
                where="the config's numbers of layers and experts",
                cure="check them; or build the shell without a limit: build_shell(lambda: make(config))",
            )

    def unwritten(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return real memory in a parameter's place, full of NaN: it is not counted as one more that was made."""
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
    """torch's default dtype is one for all threads: whoever lets code change it enters here, and it is put back.

    The first to enter notes it and the last to leave restores it: what another thread has set for a while is never
    taken for what has to be put back. An inner block of one thread gives back what the outer one chose.
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
    """Make parameters land on meta on this thread, `at_most` so many of them."""
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
    """Patch torch while at least one thread constructs. Threads that don't see the original behaviour."""
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
    """Note which modules are made: what the caller had before is his, and stays as it is."""

    @functools.wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        state = _current()
        if state is not None:
            state.born[id(self)] = self
        original(self, *args, **kwargs)

    return init


def _device_of(parameter: nn.Parameter) -> torch.device:
    """Say "cpu" of a parameter on meta: a table that is computed on its weight's device has to be real.

    torch's own kernels for meta tensors, some of which are Python, are told the truth.
    """
    device: torch.device = torch.Tensor.device.__get__(parameter)
    if device.type != "meta" or _current() is None:
        return device
    asking = str(sys._getframe(1).f_globals.get("__name__"))
    return device if asking.startswith("torch._") else torch.device("cpu")


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


def _moved_on_meta(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let a tensor on meta stay there when it is moved, keeping the dtype that is asked for.

    Constructors that quantize move weights, and what they computed from them, from device to device. A constructor
    that writes `.cuda()` behind a table leaves that on the CPU of a machine without CUDA.
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
    """Let `to_empty`, and so `skip_init`, leave parameters on meta.

    torch's own makes real ones out of them by `empty_like(meta, device="cpu")`, whose Python kernel imports sympy:
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
    """Skip an initialiser for a tensor on meta: half of what is left of a shell's time."""

    @functools.wraps(original)
    def initialise(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if _current() is not None and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return original(tensor, *args, **kwargs)

    return initialise
