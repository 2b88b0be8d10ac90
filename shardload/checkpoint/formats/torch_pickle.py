"""The pickle inside a torch checkpoint, read without importing or running anything that it names.

Measured on one core, the collector paused as the formats do: 100,000 tensors (3.2 million opcodes, 13.6 MB) take
1.3 s, 2,000 tensors 0.03 s.
"""

from __future__ import annotations

import sys
from typing import Any

from shardload._system.file_kind import RESAVE
from shardload.checkpoint.formats.aside import Aside
from shardload.checkpoint.formats.pickle_machine import EndOfDataError, PickleMachine, add_opcodes
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_globals import Global, PickledDict, Storage, lookup
from shardload.errors import UnsafeError, UnsupportedError

_LONGEST_NAME = 512
_PARAMETER = "torch.nn.parameter.Parameter"


_OF_PYTHON = sys.stdlib_module_names | {"__builtin__"}  # no module's class lies there
_OF_MODULES = (
    b"_parameters",
    b"_buffers",
    b"_modules",
    b"training",
)  # attributes that every nn.Module is pickled with


def _whole_module(name: str, where: str) -> UnsafeError:
    return UnsafeError(
        f"the file holds a whole module, pickled by the name of its class {quote(name)}, and not its state dict alone; "
        "nothing was run",
        where=where,
        cure="save it again where its class is, if you trust who made the file: "
        "torch.save(model.state_dict(), file); to load it as it is runs whatever it names",
    )


_BESIDE = Aside("a whole module")
_MODULE = Global("a class of modules", lambda *_: _BESIDE, is_aside=True)


class TorchPickle(PickleMachine):
    """A pickle of torch: plain data, and stand-ins for tensors and storages.

    Tensors become PickledTensor or Unreadable, OrderedDicts PickledDict. `with_views`: storages carry view metadata,
    as in files from before torch 1.6. `load` raises UnsafeError, besides what its base raises,
    for what would run something in another reader. With `modules_aside` whole modules are left aside instead: nothing
    of them is made. `has_module` says that one was met.
    """

    __slots__ = ("_modules_aside", "_storages", "_views", "_with_views", "has_module")

    def __init__(
        self,
        data: bytes,
        where: str,
        *,
        start: int = 0,
        with_views: bool = False,
        modules_aside: bool = False,
    ) -> None:
        super().__init__(data, where, start)
        self._modules_aside, self.has_module = modules_aside, False
        self._storages: dict[str, Storage] = {}
        self._views: dict[str, tuple[str, int, int]] = {}
        self._with_views = with_views

    def storages(self) -> dict[str, Storage]:
        """Return the storages that the pickle named, by key."""
        if not self._views.keys().isdisjoint(self._storages):
            raise self._corrupt("a view is called like a storage")
        return self._storages

    def _global(self) -> None:
        names = []
        for _ in range(2):
            end = self._data.find(b"\n", self.position, self.position + _LONGEST_NAME)
            if end < 0:
                if len(self._data) < self.position + _LONGEST_NAME:
                    raise EndOfDataError
                raise ValueError(f"a global's name is longer than {_LONGEST_NAME} bytes")
            names.append(str(self._data[self.position : end], "utf-8"))
            self.position = end + 1
        self._stack.append(self._named(names[0], names[1]))

    def _named(self, module: str, name: str) -> Global:
        try:
            return lookup(module, name, self._place())
        except (UnsafeError, UnsupportedError) as error:
            of_python = module.partition(".")[0] in _OF_PYTHON
            if of_python or not all(each in self._data for each in _OF_MODULES):
                raise
            self.has_module = True
            if self._modules_aside:
                return _MODULE
            if isinstance(error, UnsupportedError):
                raise  # a class that torch defines: the error says so
            raise _whole_module(f"{module}.{name}", self._place()) from error

    def _place(self) -> str:
        """Return the file and the last text that was read, which is usually the key of the next value."""
        for stack in (self._stack, *reversed(self._marks)):
            for item in reversed(stack):
                if type(item) is str:
                    return f"{self.where}: {quote(item)}"
        return self.where

    def _reduce(self) -> None:
        args = self._stack.pop()
        func = self._stack[-1]
        if type(func) is not Global or func.make is None:
            raise self._unsafe("REDUCE", func)
        if type(args) is not tuple:
            raise TypeError("REDUCE without a tuple of arguments")
        if args and type(args[0]) in _SIZED:
            # A list in the memo could be copied at each REDUCE.
            self._charge(100 * len(args[0]))
        self._stack[-1] = func.make(*args)

    def _newobj(self) -> None:
        args = self._stack.pop()
        func = self._stack[-1]
        if type(func) is not Global or func.make is None or not (func.is_aside or func.name == _PARAMETER):
            raise self._unsafe("NEWOBJ", func)
        if type(args) is not tuple:
            raise TypeError("NEWOBJ without a tuple of arguments")
        self._stack[-1] = func.make(*args)

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is Aside:
            return
        if type(target) is not PickledDict:
            raise self._unsafe("BUILD", target)
        if type(state) is not dict:
            raise TypeError("the attributes of an OrderedDict are no dict")
        metadata = state.get("_metadata")
        if type(metadata) in {dict, PickledDict}:
            target.metadata = metadata

    def _unsafe(self, opcode: str, target: Any) -> UnsafeError:
        on = target.name if type(target) is Global else f"a {type(target).__name__}"
        return UnsafeError(
            f"the checkpoint's pickle uses {opcode} on {on}, which weights do not need; nothing was run",
            where=f"{self.where}, byte {self.position:,}",
            cure=f"do not load it: it may run code. If you trust its author, {RESAVE}",
        )

    def _refused(self) -> None:
        raise self._unsafe(_REFUSED[self._data[self.position - 1 : self.position]], None)

    def _persistent(self) -> None:
        key = self._stack.pop()
        if type(key) is not tuple or not key:
            raise TypeError("a persistent id is no tuple")
        if key[0] == "module":
            self.has_module = True
            if self._modules_aside:
                self._stack.append(_MODULE)
                return
            raise UnsupportedError(
                "the file is a whole pickled model, not a state dict",
                where=self.where,
                cure="save model.state_dict()",
                code="E-FORMAT",
            )
        if key[0] != "storage" or len(key) != 5 + self._with_views:
            raise ValueError(f"unknown persistent id {quote(key[0])}")
        storage = self._storage(key[1], key[2], key[4])
        view = key[5] if self._with_views else None
        self._stack.append(storage if view is None else self._view(storage, view))

    def _storage(self, kind: Any, name: Any, numel: Any) -> Storage:
        if type(kind) is not Global or not kind.is_storage or type(name) is not str:
            raise TypeError("a storage without a type or a name")
        if type(numel) is not int or numel < 0:
            raise ValueError(f"a storage of {quote(numel)} elements")
        known = self._storages.get(name)
        if known is None:
            known = self._storages[name] = Storage(name, kind.code, kind.name, numel)
        elif known.numel == 0 == numel:
            return Storage(name, kind.code, kind.name, 0)
        elif known.code != kind.code or known.numel != numel:
            # torch would read both with the first type.
            raise ValueError(
                f"storage {quote(name)} is {known.numel} x {known.kind} and {numel} x {kind.name}"
            )
        return known

    def _view(self, storage: Storage, view: Any) -> Storage:
        if type(view) is not tuple or len(view) != 3:
            raise TypeError("view metadata is no triple")
        name, offset, numel = view
        if (
            type(offset) is not int
            or type(numel) is not int
            or not 0 <= offset <= offset + numel <= storage.numel
        ):
            raise ValueError(
                f"a view of {quote(numel)} elements at {quote(offset)} in a storage of {storage.numel}"
            )
        # torch takes the first storage of a name, and ignores the others.
        if type(name) is not str or self._views.setdefault(name, (storage.key, offset, numel)) != (
            storage.key,
            offset,
            numel,
        ):
            raise ValueError(f"two different views are called {quote(name)}")
        return Storage(storage.key, storage.code, storage.kind, numel, offset)


_SIZED = frozenset({list, tuple, dict, PickledDict, str, bytes})

# Opcodes that name, make or call objects, or fetch them from outside; torch's weights-only reader refuses them too.
_REFUSED = {
    b"i": "INST", b"o": "OBJ", b"\x93": "STACK_GLOBAL", b"\x92": "NEWOBJ_EX", b"P": "PERSID", b"\x82": "EXT1",
    b"\x83": "EXT2", b"\x84": "EXT4", b"\x97": "NEXT_BUFFER", b"\x98": "READONLY_BUFFER",
}  # fmt: skip

add_opcodes(TorchPickle, tuple((opcode, TorchPickle._refused, 0) for opcode in _REFUSED))
add_opcodes(
    TorchPickle,
    (
        (b"c", TorchPickle._global, 8),
        (b"R", TorchPickle._reduce, 110),
        (b"\x81", TorchPickle._newobj, 8),
        (b"b", TorchPickle._build, 0),
        (b"Q", TorchPickle._persistent, 110),
    ),
)
