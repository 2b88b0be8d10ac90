"""Provenance: remembers the report of a loaded model, and the stored tensor that each parameter came from."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shardload._system.file_identity import file_identity
from shardload.errors import UsageError
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from shardload._system.file_identity import FileIdentity
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.shard import AnyShard
    from shardload.loading.plan import Plan
    from shardload.loading.report import Report

T = TypeVar("T")


class OfModels(Generic[T]):
    """Remembers one object per model, by the model's id, until the model is freed.

    An entry neither keeps a model alive nor is pickled with it, and a class may define any two models as equal.
    """

    def __init__(self) -> None:
        self._known: dict[int, T] = {}

    def remember(self, model: nn.Module, known: T) -> None:
        """Remember an object for a model, in place of an earlier one."""
        if id(model) not in self._known:
            weakref.finalize(model, self._known.pop, id(model), None).atexit = False
        self._known[id(model)] = known

    def of(self, model: nn.Module) -> T | None:
        """Return the object of a model; None for a model without one, and for copies of a model."""
        return self._known.get(id(model))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a model was filled from, and the stored tensor, or part of one, that filled each name.

    An origin tells where a value came from, not that the value is unchanged: compare the two before you rely on it.
    Tensors that were joined from several stored ones are left out.
    """

    checkpoint: Checkpoint
    refs: dict[str, TensorRef]

    def __deepcopy__(self, memo: object) -> Origin:
        """Return the same object: a copy of a model came from the same files."""
        return self

    def __reduce__(self) -> tuple[object, tuple[()]]:
        """Pickle as None: the files may not exist where the pickle is read."""
        return _nowhere, ()

    def is_unchanged(self, ref: TensorRef) -> bool:
        """Whether the file of a stored tensor is still the one whose header was read."""
        expected = self.checkpoint.identities.get(ref.shard)
        try:
            file = self.checkpoint.source.open(ref.shard)
            if file.is_streamed:
                return True  # what is read of a store is of the version whose header was read
            now = file_identity(file.local_path())
        except Exception:  # noqa: BLE001 - a file that can't be read for any reason is not unchanged
            return False
        return expected is None or now == expected

    def open(self, ref: TensorRef) -> AbstractContextManager[AnyShard]:
        """Return the file of a stored tensor as a Shard. Entering it raises CorruptError when the file has changed."""
        return self.checkpoint._opened(ref.shard, (ref,))

    def expected(self, ref: TensorRef) -> FileIdentity | None:
        """Return the identity that a tensor's file had when its header was read; None for a file of the Hub."""
        return self.checkpoint.identities.get(ref.shard)


def _nowhere() -> None:
    return None


def remember_origin(model: nn.Module, checkpoint: Checkpoint, plan: Plan) -> None:
    """Remember the stored tensor that each name of a model was filled from."""
    filled = plan.tensors if plan.handed else plan.direct.items()
    refs = {name: ref for name, ref in filled if isinstance(ref, TensorRef) and name not in plan.claimed}
    _origins.remember(model, Origin(checkpoint, refs))


def origin_of(model: nn.Module) -> Origin | None:
    """Return the origin of a model's weights; None for a model that no checkpoint filled, and for copies."""
    return _origins.of(model)


_origins = OfModels[Origin]()
CONVERSIONS = OfModels[Any]()
"""The rules of a model's own classes that its checkpoint was loaded through."""
REPORTS = OfModels[Any]()
"""The Report of each model that from_pretrained made."""


def report_of(model: nn.Module) -> Report:
    """Return the Report of a model that from_pretrained made.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> model = shardload.from_pretrained("tiny", model_class=lambda config: torch.nn.Linear(4, 2))
        >>> shardload.report_of(model).dtypes
        {'float32': 2}

    Raises UsageError for any other model.
    """
    report: Report | None = REPORTS.of(model)
    if report is None:
        raise UsageError(
            f"this {type(model).__name__} was not made by from_pretrained",
            cure="fill() and check() return their Report; a copy of a model has none",
        )
    return report
