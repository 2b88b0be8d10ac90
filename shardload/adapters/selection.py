"""set_adapter, disable_adapter, adapter_batch: which of a model's adapters run."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import listing
from shardload.adapters.attach import (
    activate,
    adapters_of,
    check_unmerged,
    detach,
    not_attached,
    record_of,
    replacing_of,
)
from shardload.adapters.batch_rows import BatchRows
from shardload.adapters.replaced import check_apart, replace_base
from shardload.adapters.switch import LOCK, Choice, close_scope, open_scope, scoped_choice
from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    from types import TracebackType

    from torch import nn

    from shardload.adapters.attached import Adapters
    from shardload.adapters.switch import Switch


def set_adapter(model: nn.Module, which: str | Sequence[str] | Mapping[str, float]) -> None:
    """Make exactly these adapters active: one name, several names, or names with weights; `{}` is the plain base.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> reports = [shardload.attach_lora(model, r=2, targets=["0"], name=name) for name in ("a", "b")]
        >>> shardload.set_adapter(model, {"a": 0.7, "b": 0.3})
        >>> shardload.active_adapters(model)
        {'a': 0.7, 'b': 0.3}

    Each adapter's change of a layer's output is multiplied by its weight (1 where none is given) and all are added up,
    in the given order. Of the adapters that were attached to be trained, the active ones require gradients. It holds
    for the model, in all threads, from the next layer that runs on.

    Raises UsageError for a name that is not attached, for a weight that is no finite number, for two adapters that
    replace the same tensor of the base, and inside a `with` block that has a choice of its own.
    """
    weights = _weights(which)
    with LOCK:
        adapters = record_of(model)
        if scoped_choice(adapters.switch) is not None:
            raise UsageError(
                "inside disable_adapter or adapter_batch the block says which adapters run",
                where="set_adapter",
                cure="call set_adapter before the block or after it",
            )
        activate(model, weights)


def _weights(which: object) -> dict[str, float]:
    if isinstance(which, str):
        return {which: 1.0}
    if isinstance(which, Mapping):
        odd = [
            f"{name!r}: {weight!r}"
            for name, weight in which.items()
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight)
        ]
        if odd:
            raise UsageError("the weight of an adapter is a finite number", where=", ".join(odd))
        return {name: float(weight) for name, weight in which.items()}
    if isinstance(which, Sequence):
        return dict.fromkeys(which, 1.0)
    raise UsageError(
        f"set_adapter takes a name, names, or names with weights, not a {type(which).__name__}",
        cure='pass "a", ["a", "b"] or {"a": 0.7, "b": 0.3}; {} for the plain base',
    )


def delete_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter off, in place; an active one is switched off first.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> shardload.delete_adapter(model, "default")
        >>> model
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
        )

    After the last one the model is as it was: classes, parameters, gradients. Raises UsageError when no adapter of this
    name is attached, or while a `with` block that is open runs with it.
    """
    detach(model, name)


class AdapterScope:
    """A `with` block in which a model runs with other adapters; it can be entered again, and inside itself.

    Only the thread (and the asyncio task) that enters it sees the change, unless the adapters replace tensors of the
    base (biases, `modules_to_save`): the model itself changes then, so only one thread may do it.
    """

    def __init__(self, model: nn.Module, choice: Choice) -> None:
        self._model = model
        self._given = choice
        self._open = threading.local()

    def __enter__(self) -> None:
        with LOCK:
            adapters = record_of(self._model)
            check_unmerged(adapters)
            _check_names(adapters, self._given)
            choice = Choice(self._given.weights, self._given.rows)
            replacing = adapters.replacing
            _replace_for(adapters, choice)
            before = open_scope(adapters.switch, choice)
        self._stack().append((adapters.switch, choice, before, replacing))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        switch, choice, before, replacing = self._stack().pop()
        with LOCK:
            close_scope(switch, choice, before)
            adapters = adapters_of(self._model)
            if adapters is not None:
                replace_base(adapters, replacing)

    def _stack(self) -> list[tuple[Switch, Choice, Mapping[Switch, Choice], tuple[str, ...]]]:
        stack: list[Any] = vars(self._open).setdefault("stack", [])
        return stack


def disable_adapter(model: nn.Module) -> AdapterScope:
    """Return a `with` block in which the model is the plain base, whatever adapters are active.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> with shardload.disable_adapter(model):
        ...     shardload.active_adapters(model)
        {}

    Raises UsageError when no adapter is attached to the model.
    """
    record_of(model)
    return AdapterScope(model, Choice())


def adapter_batch(
    model: nn.Module, names: Sequence[str | None], *, batch_dim: int | None = None
) -> AdapterScope:
    """Return a `with` block in which every row of the batch has an adapter of its own; None is the plain base.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], name="mine")
        >>> with torch.no_grad(), shardload.adapter_batch(model, ["mine", None]):
        ...     model(torch.zeros(2, 4)).shape
        torch.Size([2, 2])

    `names` has one entry a row, as the model is called: beams are rows too. The rows of one adapter run together.
    `batch_dim` is the dimension that counts the rows inside the model, 0 or 1; left out, it is found from the shapes.

    Raises UsageError for a name that is not attached or that replaces tensors of the base and is not every row's, and,
    when a layer runs, for a batch of another length.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise UsageError(
            "adapter_batch takes one adapter's name, or None, for each row of the batch",
            where=repr(names),
            cure='pass a list such as ["a", "b", None]',
        )
    if batch_dim not in (None, 0, 1):
        raise UsageError(
            Wording("{batch_dim}: the rows are counted by dimension 0 or 1", batch_dim=batch_dim)
        )
    wanted = dict.fromkeys((name for name in names if name is not None), 1.0)
    doubtful = str(getattr(getattr(model, "config", None), "model_type", "")).startswith("chatglm")
    choice = Choice(wanted, BatchRows.of(names, batch_dim, doubtful=doubtful))
    adapters = record_of(model)
    _check_names(adapters, choice)
    return AdapterScope(model, choice)


def _check_names(adapters: Adapters, choice: Choice) -> None:
    unknown = [name for name in choice.weights if name not in adapters.attached]
    if unknown:
        raise not_attached(unknown, adapters)
    check_apart(adapters, choice.weights)
    rows = choice.rows
    replacing = replacing_of(adapters, choice.weights)
    if rows is not None and replacing and not rows.alike:
        raise UsageError(
            "an adapter that replaces tensors of the base (a bias, or modules_to_save) can't be one row's alone",
            where=listing(replacing),
            cure="run the rows of such an adapter as a batch of their own",
        )


def _replace_for(adapters: Adapters, choice: Choice) -> None:
    """Replace the base's tensors by those of the choice, which other threads must not notice in their blocks."""
    wanted = replacing_of(adapters, choice.weights)
    if wanted == adapters.replacing:
        return
    if any(other.thread != choice.thread for other in adapters.switch.live):
        raise UsageError(
            "the adapters replace tensors of the base (a bias, or modules_to_save), and another thread is inside "
            "a block with other adapters",
            where=listing(wanted or adapters.replacing),
            cure="run such adapters in one thread at a time",
        )
    replace_base(adapters, wanted)
