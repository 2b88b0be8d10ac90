"""Cures of a load that takes too much memory: each is stated by the same plan, and named if it fits the limit."""

from __future__ import annotations

import copy as copy_module
import tempfile
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from shardload.checkpoint.place import place_of_opened
from shardload.checkpoint.shard import DTYPES
from shardload.checkpoint.sources.runs import AHEAD
from shardload.dtypes import FLOATS, float_code
from shardload.errors import Cures, Wording, joined
from shardload.keymap import Derived, Joined
from shardload.loading.memory_plan import state_memory
from shardload.placement.device import OnDevice
from shardload.placement.spill import Spill
from shardload.tensor_ref import DTYPE_BITS, TORCH_NAMES, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell
    from shardload.placement.target import Target

Changes = frozenset[str]
"""What a caller can do otherwise: "convert" the files, leave out "copy", keep the "dtype", "spill" casts."""

_CONVERT = "convert the files first (`shardload convert {} -o converted{}`): the new ones are mapped"


class MemoryCures:
    """The changes of one planned load that bring it below a limit.

    `own_rules`: the model's class joins tensors by rules of its own, which a conversion of the files leaves to do.
    """

    def __init__(
        self,
        plan: Plan,
        shell: Shell,
        checkpoint: Checkpoint,
        missing: Collection[str],
        target: Target,
        *,
        copy: bool,
        own_rules: bool,
    ) -> None:
        self._plan, self._shell, self._target = plan, shell, target
        self._where = place_of_opened(checkpoint).as_arguments
        self._shards = [shard.name for shard in checkpoint.shards]
        self._stored_in = DTYPES.get(checkpoint.float_code)
        self._missing, self._copy, self._own_rules = missing, copy, own_rules
        self._ahead = AHEAD if checkpoint.source.is_streamed else 0

    def below(self, limit: int) -> str:
        """Return the smallest sets of changes with which the load fits; more memory where none does."""
        possible = self._possible()
        found: list[Changes] = []
        for count in range(1, len(possible) + 1):
            for names in map(frozenset, combinations(possible, count)):
                if not any(smaller <= names for smaller in found) and self._peak(names) <= limit:
                    found.append(names)
        if found:
            return Cures(*(self._said(names) for names in found))
        if self._ahead:
            return Cures(
                "copy the checkpoint into a folder, and load that: there it is mapped",
                Wording("give it more memory: {max_memory}", max_memory=self._peak(frozenset())),
            )
        return Wording("give it more memory: {max_memory}", max_memory=self._peak(frozenset()))

    def _possible(self) -> list[str]:
        on_device = type(self._target) is OnDevice
        casts = on_device and getattr(self._target, "dtype", None) is not None
        if self._ahead:  # what is streamed can't be mapped, and is nothing that a command converts
            return ["dtype"] if casts else []
        return [
            *(["copy"] if self._copy else []),
            *(["dtype"] if casts else []),
            *(["spill"] if on_device and self._target.spill is None else []),
            "convert",
        ]

    def _peak(self, changes: Changes) -> int:
        plan = self._converted() if "convert" in changes else self._plan
        target, shell = self._target, self._shell
        if changes & {"dtype", "spill"}:
            target = copy_module.copy(target)
        if "spill" in changes:
            target.spill = Spill(tempfile.gettempdir())  # no file is made: it only states
        if "dtype" in changes and isinstance(target, OnDevice):
            shell = replace(shell, one_dtype=False)
            kept = OnDevice(target.device)
            kept.spill, kept.beside, kept.dtypes = target.spill, target.beside, shell.dtypes(self._stored_in)
            target = kept
        copy = self._copy and "copy" not in changes
        wanted = self._shards, self._missing, target
        return state_memory(plan, shell, *wanted, copy=copy, ahead=self._ahead).peak

    def _converted(self) -> Plan:
        """Return the plan of the files that `convert` writes: every tensor in one aligned piece, joins done."""
        plan = self._plan

        def written(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return {key: self._written(key, tensor) for key, tensor in tensors.items()}

        handed = {root: written(entries) for root, entries in plan.handed.items()}
        return replace(
            plan,
            mapped=written(plan.mapped),
            direct=written(plan.direct),
            handed=handed,
            turned=set(),
            copied=set(),
        )

    def _written(self, key: str, tensor: Any) -> Any:
        made = not isinstance(tensor, TensorRef) and isinstance(tensor, Derived)
        if key in self._plan.parts or not (isinstance(tensor, TensorRef) or (made and not self._own_rules)):
            return tensor
        code = self._cast_to() if tensor.dtype in FLOATS.values() else ""
        nbytes = tensor.nbytes * DTYPE_BITS[code or tensor.dtype] // DTYPE_BITS[tensor.dtype]
        return TensorRef(key, code or tensor.dtype, tensor.shape, tensor.shard, Span(0, nbytes))

    def _cast_to(self) -> str:
        """Return the code of the dtype that files are converted to; "" where the class keeps weights in another one."""
        target = self._target
        return "" if target.dtypes else float_code(getattr(target, "dtype", None)) or ""

    def _said(self, changes: Changes) -> str:
        """Return what the caller has to do, as one cure."""
        joins = not self._own_rules and any(isinstance(each, Joined) for _, each in self._plan.tensors)
        convert = Wording(
            "convert the files first with this {key_map} (`shardload convert`), and load the result without one",
            key_map=...,
        )
        name = TORCH_NAMES.get(self._cast_to(), "")
        plain = _CONVERT.format(self._where, f" --dtype {name}" if name else "")
        texts = {
            "convert": convert if joins else plain,
            "dtype": Wording(
                "keep the stored dtype ({dtype}; with fill, an OnDevice without one)", dtype="stored"
            ),
            "copy": Wording("leave out {copy}, so that the files are mapped", copy=True),
            "spill": Wording(
                "pass {spill}: the kernel can write the results of casts to a file there", spill=...
            ),
        }
        return joined(", and ", [text for name, text in texts.items() if name in changes])
