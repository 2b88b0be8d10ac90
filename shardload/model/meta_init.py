"""MetaInit: a mode of torch's, on one thread, under which a constructor makes its parameters on the meta device."""

from __future__ import annotations

import functools
import sys
import threading
from contextlib import AbstractContextManager, _GeneratorContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch._C import (
    _get_function_stack_at,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from shardload.model.default_dtype import call_in, default_of
from shardload.model.default_dtype_kept import DTYPE_BEFORE, put_back_if_set
from shardload.model.no_values import call_mixed, is_mixed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, TracebackType

    from shardload.model.construction import Construction

Result = TypeVar("Result")

_local = threading.local()


def constructed(
    make: Callable[[], Result], construction: Construction, dtype: torch.dtype | None = None
) -> Result:
    """Return `make()`, run on this thread with parameters on meta; `dtype` is the default dtype that it works in.

    No name of torch is replaced, and no other thread is affected. A default dtype that `make` sets is put back.
    """
    construction.tells = dtype not in (None, torch.get_default_dtype())
    block, made = object(), None
    DTYPE_BEFORE[block] = before = [*DTYPE_BEFORE.values(), torch.get_default_dtype()][0]
    try:
        made = _under(MetaInit(construction, dtype), make)
    finally:
        DTYPE_BEFORE.pop(block, None)
        if torch.get_default_dtype() is not before:
            put_back_if_set(before, make, made, sys.exc_info()[2])
    return made


def _under(mode: MetaInit, make: Callable[[], Result]) -> Result:
    outer, gradients = _current(), torch.is_grad_enabled()
    # In one frame, with torch's own functions: Python handles a signal after a call has returned, so none comes
    # between the line that sets `mode` and the push, or the next one and the pop. A `with` block would run code there.
    try:
        _local.mode = mode
        _push_on_torch_function_stack(mode)
        made = make()
        on_top = _get_function_stack_at(_len_torch_function_stack() - 1) is mode
        if not on_top:  # the constructor left a mode of its own there
            _take_off(mode)
    except BaseException as error:
        _local.mode = outer
        _end_blocks_without_a_mode(error.__traceback__)
        _take_off(mode)
        # Ctrl-C at the end of a `no_grad` block of Python's leaves them off.
        torch._C._set_grad_enabled(gradients)
        raise
    _local.mode = outer
    if on_top:
        _pop_torch_function_stack()
    return made


def _take_off(mode: MetaInit) -> None:
    """Take a mode off the stack, wherever it is, and leave those that others have put there."""
    above = []
    while any(_get_function_stack_at(place) is mode for place in range(_len_torch_function_stack())):
        top = _pop_torch_function_stack()
        if top is not mode:
            above.append(top)
    for other in reversed(above):
        _push_on_torch_function_stack(other)


def _end_blocks_without_a_mode(traceback: TracebackType | None) -> None:
    """End blocks of `torch.overrides` in which a mode is off the stack, and in whose last line an error fell.

    They are generators: left alone, each would put its mode back when it is collected, after this load has ended.
    """
    while traceback is not None:
        block = traceback.tb_frame.f_locals.get("self")
        generator = getattr(block, "gen", None) if isinstance(block, _GeneratorContextManager) else None
        if generator is not None and generator.gi_code is _BLOCK_WITHOUT_A_MODE:
            generator.close()
        traceback = traceback.tb_next


def constructing() -> bool:
    """Whether this thread is inside `build_shell`, where initialising weights has no effect."""
    mode = _current()
    return mode is not None and not mode.construction.real


def unseen() -> AbstractContextManager[None]:
    """Return a block whose calls a construction does not see: a constructor may load the weights of another model."""
    return torch._C.DisableTorchFunction() if _current() is not None else nullcontext()


def begin_again() -> None:
    """Forget the parameters that a failed constructor made; call this before the constructor runs once more."""
    mode = _current()
    if mode is not None:
        mode.construction.begin()


def _current() -> MetaInit | None:
    return getattr(_local, "mode", None)


class MetaInit(TorchFunctionMode):
    """Sees every function of torch that its thread calls while a constructor runs."""

    def __init__(self, construction: Construction, dtype: torch.dtype | None = None) -> None:
        self.construction = construction
        self.dtype, self.outside = dtype, torch.get_default_dtype()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # A small module calls these most often, and a model has thousands of them.
        if func in _SIZES_AND_FACTS:
            return func(*args, **kwargs) if kwargs else func(*args)
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self, func, args, kwargs or {})
        # Libraries replace torch's initialisers while they load; torch then hands on theirs.
        if getattr(func, "__name__", "") in _INITIALISERS:
            return _initialised(self, func, args, kwargs or {})
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call any function: parameters among its arguments are new or known, and tensors that it returns are new."""
        construction = self.construction
        given = list(_tensors([*args, *kwargs.values()]))
        for tensor in given:
            construction.touch(tensor)
        construction.empty_lost(given)
        if is_mixed(given):
            call = functools.partial(self._call, func, given)
            made = call_mixed(construction, call, func, args, kwargs, given)
        else:
            made = self._call(func, given, args, kwargs)
        if not construction.is_first:
            construction.note_written(given)
        if func not in _OF_OTHERS_MEMORY:
            for tensor in _tensors((made,)):
                if not tensor.is_meta:
                    construction.note_made(tensor, given)
        return made

    def _call(self, func: Callable[..., Any], given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        dtype = self.default()
        if dtype is None or dtype is torch.get_default_dtype():
            return func(*args, **kwargs)
        return call_in(dtype, func, args, kwargs, given, boundary=_under.__code__)

    def default(self) -> torch.dtype | None:
        """Return the default dtype that the call of a function has here; None is torch's own."""
        if self.dtype is None or self.dtype is self.outside is torch.get_default_dtype():
            return self.dtype
        return default_of(self.dtype, self.outside, sys._getframe(3), _under.__code__)


def _empty(mode: MetaInit, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Make what a module of torch hands straight to Parameter on meta at once."""
    for_parameter = id(sys._getframe(2).f_code) in _OWN_CONSTRUCTORS
    construction = mode.construction
    if for_parameter and construction.is_first:
        dtype = kwargs.get("dtype") or mode.default()
        made = func(*args, **{**kwargs, "dtype": dtype, "device": _META})
        if made.nbytes < _MOST:
            return made
    made = mode.call(func, args, kwargs)
    if not construction.is_first:
        construction.note_unwritten(made, for_parameter=for_parameter)
    return made


def _empty_like(mode: MetaInit, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Leave parameters on meta where `to_empty` (of `skip_init`) asks for memory, and give it to buffers.

    torch's own kernel for it is Python and imports sympy: 0.35 s of a ChatGLM load of 0.56 s.
    """
    source = args[0] if args else kwargs["input"]
    if not source.is_meta or kwargs.get("device") is None or torch.device(kwargs["device"]).type == "meta":
        made = mode.call(func, args, kwargs)
    elif _is_parameter(type(source)):
        mode.construction.touch(source)
        mode.construction.give_memory(source, kwargs["device"])
        return source.detach()
    else:
        dtype = kwargs.get("dtype") or source.dtype
        made = torch.empty(source.shape, dtype=dtype, device=kwargs["device"])
        mode.construction.note_made(made, ())
    if not mode.construction.is_first:
        mode.construction.note_unwritten(made, for_parameter=False)
    return made


def _registered(mode: MetaInit, func: Callable[..., Any], args: Any, _kwargs: Any) -> Any:
    """Note a parameter at its registration, where torch asks for its `grad_fn`."""
    parameter = args[0]
    if not mode.construction.touch(parameter):
        frame = sys._getframe(2)
        if frame.f_code is nn.Module.register_parameter.__code__:
            names = frame.f_locals
            mode.construction.register_stranger(names["self"], names["name"], parameter)
    return func(*args)


def _initialised(mode: MetaInit, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Skip an initialiser or filler for a tensor on meta, which saves half of the remaining time of a shell."""
    tensor = args[0] if args else kwargs.get("tensor")
    if isinstance(tensor, torch.Tensor):
        mode.construction.touch(tensor)
        if tensor.is_meta:
            return tensor
    return mode.call(func, args, kwargs)


def _numel(mode: MetaInit, func: Callable[..., Any], args: Any, _kwargs: Any) -> Any:
    """Note the initialiser that needs work space: on meta it asks for a size, and does nothing.

    Earlier releases of torch would factorise there. A tensor of no elements is left as it is by all of them.
    """
    if sys._getframe(2).f_code is _ORTHOGONAL:
        mode.construction.is_orthogonal = True
        if args[0].is_meta:
            return 0
    return func(*args)


def _data_set(mode: MetaInit, func: Callable[..., Any], args: Any, _kwargs: Any) -> None:
    """Give a tensor the shape and dtype of another one, and no values where either has none."""
    tensor, source = args
    for one in args:
        mode.construction.touch(one)
    if source.is_meta and tensor.is_meta:
        func(tensor, source)
        return
    if source.is_meta:
        mode.construction.empty(tensor)
    func(tensor, source.detach().to(_META) if tensor.is_meta else source)


def _device(mode: MetaInit, func: Callable[..., Any], args: Any, _kwargs: Any) -> torch.device:
    """Return "cpu" for a parameter on meta: a table that a class computes on the device of its weight has to be real.

    Code of torch gets the true device: some of its kernels for meta tensors are Python and read this property.
    """
    device: torch.device = func(*args)
    if not _is_parameter(type(args[0])):
        return device
    mode.construction.touch(args[0])
    if device.type == "meta" and str(sys._getframe(2).f_globals.get("__name__")).startswith("torch._"):
        return device
    return torch.device("cpu") if device.type == "meta" else device


def _moved(mode: MetaInit, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Leave a tensor on meta, or one that goes to the device of a parameter on meta, where it is; change its dtype.

    Constructors that quantise move weights, and tensors that they compute from weights, between devices. On a machine
    without CUDA, `.cuda()` leaves a computed table on the CPU.
    """
    tensor = args[0]
    mode.construction.touch(tensor)
    asked = [*args[1:], *kwargs.values()]
    like = next((one for one in asked if isinstance(one, torch.Tensor)), tensor)
    stays = func is torch.Tensor.cuda and not torch.cuda.is_available()
    if not (tensor.is_meta or like.is_meta or stays):
        return mode.call(func, args, kwargs)
    dtype = next((one for one in asked if isinstance(one, torch.dtype)), like.dtype)
    return tensor if dtype == tensor.dtype else tensor.type(dtype)


def _is_parameter(kind: type) -> bool:
    return kind is nn.Parameter or issubclass(kind, nn.Parameter)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among values, and among the lists and tuples of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from (one for one in value if isinstance(one, torch.Tensor))


def _own_constructors() -> dict[int, CodeType]:
    """Return, by id, the code of constructors of torch.nn that hand each `torch.empty(…)` straight to Parameter."""
    kinds = (one for one in vars(nn.modules).values() if isinstance(one, type) and issubclass(one, nn.Module))
    bases = {base for kind in kinds for base in kind.__mro__ if issubclass(base, nn.Module)}
    codes = (getattr(vars(base).get("__init__"), "__code__", None) for base in bases)
    return {id(code): code for code in codes if code and {"Parameter", "empty"} <= set(code.co_names)}


def _getter(name: str) -> Callable[..., Any]:
    return getattr(torch.Tensor, name).__get__  # type: ignore[no-any-return]


_FILLERS = "normal_ uniform_ exponential_ log_normal_ bernoulli_ random_ zero_ fill_ copy_"
_IN_PLACE = "clamp_ mul_ add_ div_ sub_ erfinv_"
_SIZES = ("dim", "size", "stride", "is_floating_point", "is_contiguous", "element_size", "__len__")
_FACTS = (
    "shape",
    "dtype",
    "requires_grad",
    "grad",
    "ndim",
    "layout",
    "is_sparse",
    "is_quantized",
    "_version",
)

_BLOCK_WITHOUT_A_MODE = _pop_mode_temporarily.__wrapped__.__code__  # type: ignore[attr-defined]
_META = torch.device("meta")
_MOST = 2**46  # bytes: no machine has them, and only a tensor with memory fails with torch's own words

# Their results have memory that may be another's, although no argument is a tensor.
_OF_OTHERS_MEMORY = frozenset({torch.from_numpy, torch.frombuffer, torch.as_tensor, torch.asarray})

_INITIALISERS = frozenset(name for name in vars(nn.init) if name.endswith("_") and name[0] != "_")

# Functions that neither read nor make values.
_SIZES_AND_FACTS = frozenset(
    [torch._C._set_grad_enabled, torch._has_compatible_shallow_copy_type]
    + [getattr(torch.Tensor, name) for name in _SIZES]
    + [_getter(name) for name in _FACTS]
)
_OWN_CONSTRUCTORS = _own_constructors()
_ORTHOGONAL = nn.init.orthogonal_.__code__

_SPECIAL: dict[Any, Callable[..., Any]] = {
    **{getattr(nn.init, name): _initialised for name in _INITIALISERS},
    **{getattr(torch.Tensor, name): _initialised for name in f"{_FILLERS} {_IN_PLACE}".split()},
    **{getattr(torch.Tensor, name): _moved for name in ("to", "type_as", "cpu", "cuda")},
    torch.Tensor.data.__set__: _data_set,  # type: ignore[attr-defined]
    torch.Tensor.numel: _numel,
    torch.empty: _empty,
    torch.empty_like: _empty_like,
    _getter("grad_fn"): _registered,
    _getter("device"): _device,
}
