"""Construction: the parameters that a constructor makes, in order, and which of them have memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from shardload._system.gc_freeze import freeze_more
from shardload._system.heap import give_back
from shardload.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MANY = 4096  # parameters, with the modules around them
_META = torch.device("meta")
_TO_GIVE_BACK = 2**25  # bytes
_TELLING = frozenset({"FloatTensor", "from_numpy"})
_NO_CODE = (lambda: None).__code__
_SMALL = 64 * 2**20  # bytes: no buffer is larger, and to fill large parameters would cost time


class Construction:
    """One run of a constructor: which parameters it made, in the order in which torch first saw each.

    A parameter is put on meta when a function of torch first gets it: at its registration at the latest. `real` holds
    the ordinals of those that get memory, in a run that is not the first; NaN marks what nobody writes to there. A
    parameter over memory that no function returned during this run may be one that existed before: it is left alone
    until `settle`.
    """

    def __init__(self, real: frozenset[int] | None = None, at_most: int | None = None) -> None:
        self.is_first = real is None
        self.real = real or frozenset()
        self.at_most = at_most
        self.tells = False
        self.is_orthogonal = False  # an initialiser that needs much work space was called
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier run of the constructor has made."""
        self.created: list[nn.Parameter] = []
        self._known: dict[int, nn.Parameter] = {}  # holds the parameters, so that an id has one meaning
        self._foreign: dict[int, nn.Parameter] = {}  # may have existed before, whatever memory they get later
        self._strangers: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._freed = 0  # bytes; in between lie small blocks that live on, so that malloc keeps them
        self._told: dict[
            int, StorageWeakRef
        ] = {}  # by address, the storages that functions returned, if it `tells`
        self._untold: set[int] = set()
        self._made: set[int] = {0}  # addresses of storages; 0 is that of all empty ones
        self._unwritten: dict[int, torch.Tensor] = {}
        self._lost: dict[
            int, StorageWeakRef
        ] = {}  # by address; a weak reference keeps that from being used again
        self._stuck: set[int] = set()  # ids of parameters that C++ holds, so that they can't change in place

    def touch(self, parameter: Any) -> bool:
        """Put a parameter on meta when it is first seen; return False for one that may have existed before.

        Any other value is left alone. Raises MismatchError past `at_most` parameters: a config can ask for any number.
        """
        if id(parameter) in self._known:
            return True
        if type(parameter) is not nn.Parameter and not _is_new_parameter(parameter):
            return True
        if id(parameter) in self._foreign:
            return False
        if not parameter.is_meta and _address(parameter) not in self._made:
            self._foreign[id(parameter)] = parameter
            return False
        self._add(parameter)
        return True

    def _add(self, parameter: nn.Parameter) -> None:
        self._known[id(parameter)] = parameter
        if not parameter.is_meta:
            if self.tells and not self._tells_of(parameter):
                self._untold.add(id(parameter))
            if len(self.created) not in self.real:
                self._freed += parameter.nbytes
                if not _empty_in_place(parameter):
                    self._stuck.add(id(parameter))
            elif _address(parameter) in self._unwritten:
                _fill_with_nan(parameter)
        self.created.append(parameter)
        if not len(self.created) % _MANY:
            freeze_more()
        if self._freed > _TO_GIVE_BACK:
            self._freed = 0
            give_back()
        if self.at_most is not None and len(self.created) > self.at_most:
            raise MismatchError(
                f"the model has over {self.at_most:,} parameters, far more than its checkpoint has tensors",
                where="the config's numbers of layers and experts",
                cure="check them; or build the shell without a limit: build_shell(lambda: make(config))",
            )

    def untold(self, modules: Iterable[tuple[str, nn.Module]]) -> frozenset[str]:
        """Return the names of tensors of which nothing told the dtype: no function made their memory.

        `torch.Tensor(…)` makes such, in the default dtype; a constructor that writes `torch.FloatTensor(…)` tells it.
        """
        if not self.tells:
            return frozenset()
        return frozenset(
            path + name
            for path, module in modules
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
            and (id(tensor) in self._untold or (not tensor.is_meta and not self._tells_of(tensor)))
            and _TELLING.isdisjoint(getattr(type(module).__init__, "__code__", _NO_CODE).co_names)
        )

    def _tells_of(self, tensor: torch.Tensor) -> bool:
        known = self._told.get(_address(tensor))
        return known is not None and known.cdata == memory_of(tensor)

    def register_stranger(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        """Note that a module of this construction got a parameter over memory from elsewhere."""
        self._strangers.append((module, name, parameter))

    def give_memory(self, parameter: nn.Parameter, device: Any) -> None:
        """Give memory full of NaN to a parameter on meta, in place, if it is one that gets some."""
        if any(self.created[ordinal] is parameter for ordinal in self.real if ordinal < len(self.created)):
            made = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            _fill_with_nan(made)
            torch._C._swap_tensor_impl(parameter, made.requires_grad_(parameter.requires_grad))

    def empty(self, tensor: torch.Tensor) -> bool:
        """Put a tensor of this construction, and all over its memory, on meta: its values come from one without any."""
        if _address(tensor) not in self._made:
            return False
        memory = tensor.untyped_storage()
        if not _empty_in_place(tensor):
            return False
        self._lost[memory._cdata] = StorageWeakRef(memory)  # type: ignore[no-untyped-call]
        return True

    def empty_lost(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put those of these tensors on meta that are over the memory of one that lost its values."""
        for tensor in tensors if self._lost else ():
            if not tensor.is_meta and memory_of(tensor) in self._lost:
                _empty_in_place(tensor)

    def note_made(self, made: torch.Tensor, arguments: Iterable[torch.Tensor]) -> None:
        """Note that a function returned this tensor: its memory is of this construction, unless an argument has it."""
        address = _address(made)
        self._unwritten.pop(address, None)
        if self.tells and not made.is_meta and all(_address(one) != address for one in arguments):
            self._told[address] = StorageWeakRef(made.untyped_storage())  # type: ignore[no-untyped-call]
        if address not in self._made and all(_address(one) != address for one in arguments):
            self._made.add(address)

    def note_unwritten(self, made: torch.Tensor, *, for_parameter: bool) -> None:
        """Note that nobody has written to this tensor yet; NaN marks one that may become a buffer."""
        if not made.is_floating_point() or made.is_meta:
            return
        if for_parameter or made.nbytes > _SMALL:
            self._unwritten[_address(made)] = made  # held: its address must not be that of another tensor
        else:
            made.fill_(float("nan"))

    def note_written(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that a function got these tensors, and may have written to them."""
        if self._unwritten:
            for tensor in tensors:
                self._unwritten.pop(_address(tensor), None)

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Put on meta, at the end, what torch did not see as a new parameter; tied parameters stay tied.

        These are parameters over memory from elsewhere (`torch.Tensor(3, 4)`, NumPy) in modules that this run made, and
        copies of modules (`copy.deepcopy`), whose parameters nobody registers. A module that existed before keeps its
        parameters. Memory that is unwritten is NaN by now.
        """
        moved: dict[int, nn.Parameter] = {}
        for module, name, stranger in self._strangers:
            if module._parameters.get(name) is stranger:
                module._parameters[name] = self._replacement(stranger, moved)
        for module in modules:
            self.empty_lost(value for value in module.__dict__.values() if isinstance(value, torch.Tensor))
            self.empty_lost(buffer for buffer in module._buffers.values() if buffer is not None)
            self.empty_lost(one for one in module._parameters.values() if one is not None)
            for name, parameter in module._parameters.items():
                if id(parameter) in self._known and id(parameter) not in self._stuck:
                    continue
                if parameter is not None and self.touch(parameter) and id(parameter) in self._stuck:
                    module._parameters[name] = self._replacement(parameter, moved)
        self._unwritten.clear()

    def _replacement(self, parameter: nn.Parameter, moved: dict[int, nn.Parameter]) -> nn.Parameter:
        """Return a parameter on meta (or, where the caller wants memory, over the same memory) in place of this one."""
        new = moved.get(id(parameter))
        if new is None:
            new = moved[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
            new.__dict__.update(parameter.__dict__)
            if id(parameter) in self._stuck:
                self.created[[id(one) for one in self.created].index(id(parameter))] = new
                _empty_in_place(new)
            else:
                self._add(new)
            self._known[id(new)] = new
        return new


def _is_new_parameter(value: Any) -> bool:
    """Whether a value is a parameter that has a shape: one that is lazy gets it in its first forward."""
    return isinstance(value, nn.Parameter) and not nn.parameter.is_lazy(value)


def _empty_in_place(parameter: torch.Tensor) -> bool:
    """Put a tensor on meta; the object stays, so references and ties to it do. False: C++ holds its old value."""
    with (
        torch._C.DisableTorchFunctionSubclass()
    ):  # a class of tensors makes views of what torch returns, no leaves
        hollow = torch.empty_like(parameter, device=_META, requires_grad=parameter.requires_grad)
    try:
        torch._C._swap_tensor_impl(parameter, hollow)
    except RuntimeError:
        return False
    return True


def _fill_with_nan(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        with torch.no_grad():
            tensor.fill_(float("nan"))


def memory_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage, the object; 0 where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError, ValueError):  # sparse tensors, wrappers
        return 0


def _address(tensor: Any) -> int:
    """Return the address of a tensor's memory; 0 where it has none of its own."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError, ValueError):  # sparse tensors, wrappers
        return 0
