"""What a diagnosis rule gets and gives. A new rule is one new file beside this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.keymap import Derived, KeyMap

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A model and a checkpoint that disagree, by names, shapes and headers alone.

    `slots` are the model's keys that a checkpoint has to fill; `stored` the checkpoint's tensors under the names
    they were compared by. `missing`, `unexpected` and `misshapen` are keys of faults.
    """

    slots: Mapping[str, Shape]
    stored: Mapping[str, Derived]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshapen: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A cause that was tried: what it explains and what cures it.

    `code` is stable, such as "E-WRAP". `explained` counts faulty keys that the cure settles. `key_map` is the
    cure as a map, where there is one. `declines` marks checkpoints that this version does not load at all.
    """

    code: str
    cause: str
    explained: int
    cure: str
    key_map: KeyMap | None = None
    declines: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON data."""
        rules = [rule.to_dict() for rule in self.key_map.rules] if self.key_map else None
        return {**vars(self), "key_map": rules}


class Rule(Protocol):
    """Looks at a case and reports what it can prove."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return findings, the strongest first; none where the rule does not apply."""
