"""Format: what a reader of one file format does. A new format is a new file beside this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile
    from shardload.tensor_ref import TensorRef


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a shard: everything that is known before its first weight is read.

    `objects` are the state dict's entries that are not tensors (an `_extra_state`, an epoch number).
    `versions` is the state dict's `_metadata`: module path to {"version": n}. `envelope` is the path of keys
    under which the state dict was found in a pickle, such as ("state_dict",). `discarded` names what else the
    envelope held (optimizer, epoch), `others` the other state dicts in it, with their tensors. `notes` say this to
    people.
    """

    tensors: tuple[TensorRef, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    envelope: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """Reads the headers of one file format. `shard.py` reads the weights: a TensorRef says where they are."""

    @property
    def name(self) -> str:
        """The name in reports: "safetensors", "torch zip", "torch legacy"."""

    def matches(self, head: bytes) -> bool:
        """Whether a file that starts with `head` (up to 64 bytes, the whole of a shorter file) is of this format."""

    def read_header(self, file: SourceFile, state_dict: str | None = None) -> Header:
        """Read the header and nothing else, without importing torch; `state_dict` names one of several.

        Raises CorruptError or UnsafeError.
        """
