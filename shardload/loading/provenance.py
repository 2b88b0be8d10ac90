"""Provenance: what is known of a model that was loaded: its report, and the stored tensor behind each parameter."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shardload._system.file_identity import file_identity
from shardload.checkpoint.shard import Shard
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from shardload._system.file_identity import FileIdentity
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.loading.plan import Plan

T = TypeVar("T")


class OfModels(Generic[T]):
    """What is known of models, by their ids until they are gone.

    So nothing that is known keeps a model alive or is pickled with it, and a class may call any two models equal.
    """

    def __init__(self) -> None:
        self._known: dict[int, T] = {}

    def remember(self, model: nn.Module, known: T) -> None:
        """Note what is known of a model, in place of what was."""
        if id(model) not in self._known:
            weakref.finalize(model, self._known.pop, id(model), None).atexit = False
        self._known[id(model)] = known

    def of(self, model: nn.Module) -> T | None:
        """Return what is known of a model; None for another one, and for copies."""
        return self._known.get(id(model))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a model was filled from, and the stored tensor, or part of one, behind each name.

    It says where a value came from, not that it is still that value: compare before you rely on it. Tensors that were
    put together from several stored ones are left out.
    """

    checkpoint: Checkpoint
    refs: dict[str, TensorRef]

    def __deepcopy__(self, memo: object) -> Origin:
        """Return the same object: a copy of a model came from the same files."""
        return self

    def __reduce__(self) -> tuple[object, tuple[()]]:
        """Pickle as None: where the pickle is read, the files may not be."""
        return _nowhere, ()

    def is_unchanged(self, ref: TensorRef) -> bool:
        """Whether the file of a stored tensor is still the one whose header was read."""
        expected = self.checkpoint.identities.get(ref.shard)
        try:
            now = file_identity(self.checkpoint.source.open(ref.shard).local_path())
        except Exception:  # noqa: BLE001 - whatever keeps it from being read, it is not there as it was
            return False
        return expected is None or now == expected

    def open(self, ref: TensorRef) -> AbstractContextManager[Shard]:
        """Return the opened file of a stored tensor. Raises CorruptError where it has changed since the load."""
        path = self.checkpoint.source.open(ref.shard).local_path()
        return Shard(path, expected=self.expected(ref))

    def expected(self, ref: TensorRef) -> FileIdentity | None:
        """Return the identity that a tensor's file had when its header was read; None for a file of the Hub."""
        return self.checkpoint.identities.get(ref.shard)


def _nowhere() -> None:
    return None


def remember_origin(model: nn.Module, checkpoint: Checkpoint, plan: Plan) -> None:
    """Note which stored tensor each name of a model was filled from."""
    filled = plan.tensors if plan.handed else plan.direct.items()
    refs = {name: ref for name, ref in filled if isinstance(ref, TensorRef) and name not in plan.claimed}
    _origins.remember(model, Origin(checkpoint, refs))


def origin_of(model: nn.Module) -> Origin | None:
    """Return where a model's weights came from; None for one that no checkpoint filled, and for copies."""
    return _origins.of(model)


_origins = OfModels[Origin]()
REPORTS = OfModels[Any]()
"""The Report of each model that from_pretrained made."""
