"""Examination: what an examination of a checkpoint found, as data and as lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload._system.process_memory import size_of
from shardload.diagnosis.finding_text import finding_lines
from shardload.errors import Wording, plain_keywords

if TYPE_CHECKING:
    from shardload.diagnosis.finding import Finding
    from shardload.keymap import KeyMap

SCHEMA = 1
"""The version of the JSON document: fields are only added to it."""


@dataclass
class Examination:
    """What `examine` found. `against` names what the checkpoint was compared with, or is "".

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> found = shardload.examine("tiny", model_class=lambda config: torch.nn.Linear(4, 2))
        >>> found.against, found.keys, found.nbytes, found.exit_code
        ('Linear', 2, 40, 0)

    `keys` and `nbytes` count the whole checkpoint. `key_map` is the map that cures what can be cured, bound to this
    checkpoint; `cured`: a second comparison, with the map applied, found nothing. Where nothing has to be cured it says
    in literal rules what a class of transformers makes of the checkpoint by itself, if that changes anything. `notes`
    are lines that are no findings. `cure` says every step that a load needs at once, where a model was compared.
    `leniency` are the keywords that a load with the map needs beside it, such as `allow_unexpected`; None if they are
    not enough.
    """

    where: str
    findings: tuple[Finding, ...] = ()
    key_map: KeyMap | None = None
    cured: bool = False
    against: str = ""
    keys: int = 0
    nbytes: int = 0
    notes: list[str] = field(default_factory=list)
    cure: str | None = None
    leniency: dict[str, list[str]] | None = None

    @property
    def exit_code(self) -> int:
        """0 clean, 1 findings, 3 curable by the map, 4 unsafe or corrupt."""
        if any(finding.unsafe for finding in self.findings):
            return 4
        if not any(finding.code.startswith("E-") for finding in self.findings):
            return 0
        return 3 if self.cured else 1

    @property
    def unproven(self) -> tuple[str, ...]:
        """What names and shapes can't show of the map."""
        return tuple(dict.fromkeys(line for finding in self.findings for line in finding.unproven))

    def to_dict(self) -> dict[str, Any]:
        """Return the examination as JSON data; `schema` is the version of its layout.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shardload.examine("tiny").to_dict()["findings"]
        []
        """
        return {
            "schema": SCHEMA,
            "where": self.where,
            "against": self.against,
            "keys": self.keys,
            "nbytes": self.nbytes,
            "exit_code": self.exit_code,
            "cured": self.cured,
            "findings": [finding.to_dict() for finding in self.findings],
            "key_map": [rule.to_dict() for rule in self.key_map.rules] if self.key_map else None,
            "cure": self.cure,
            "keywords": plain_keywords(self.cure),
            "leniency": self.leniency,
            "unproven": list(self.unproven),
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """Return the findings as at most 40 lines, the worst first.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shardload.examine("tiny", like="tiny").lines()
        ['tiny: fits tiny (2 keys)']
        """
        if not self.findings:
            what = f"fits {self.against}" if self.against else "headers and index are sound"
            return [f"{self.where}: {what} ({self.keys:,} keys)", *self._last()]
        title = f"{self.where} → {self.against}" if self.against else self.where
        return [
            title,
            *finding_lines(self.findings, total=self.keys, nbytes=self.nbytes, most=33),
            *self._last(),
        ]

    def _last(self) -> list[str]:
        whole: list[str] = [Wording("to load it: {0}", self.cure)] if self.cure and self._is_more() else []
        if self.key_map is None:
            return whole
        count = len(self.key_map.rules)
        if not self.findings:
            return [
                f"map: {count} rule{'s' * (count != 1)} for what the class makes of the checkpoint by itself"
            ]
        left = "it cures everything" if self.cured else "it cures a part"
        doubt = "; it has unproven layouts, so look at it first" if self.unproven else ""
        held = self.key_map.resident_bytes or 0
        memory = f"; a load assembles up to {size_of(held)} at a time" if held else ""
        return [f"map: {count} rule{'s' * (count != 1)}, tried on the headers: {left}{memory}{doubt}", *whole]

    def _is_more(self) -> bool:
        """Whether the whole cure says more than the cures of the findings one by one."""
        return self.cure not in {finding.cure for finding in self.findings}
