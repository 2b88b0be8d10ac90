"""A prefix of P-Tuning v2 that is wanted on a model: measured before the model is made, filled in after its load."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import UsageError, Wording, keyword
from shardload.loading.fill import check, fill
from shardload.loading.mismatch import mismatch

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.loading.leniency import Patterns
    from shardload.loading.report import Report
    from shardload.model.shell import Shell
    from shardload.placement.target import Target
    from shardload.where import Where

_MODULE = "prefix_encoder"
_KEY = re.compile(rf"(?:.*\.)?{_MODULE}\.(.+)")
_TABLE = "embedding.weight"


class PrefixOnLoad:
    """A file of P-Tuning v2: its tensors belong to `prefix_encoder`, a module that a class makes for `pre_seq_len`.

    Raises what `open_checkpoint` raises, and UsageError for a file that holds no prefix, or more than one.
    """

    def __init__(self, where: Where) -> None:
        self._checkpoint = open_checkpoint(where)
        found = {key: _KEY.fullmatch(key) for key in self._checkpoint.tensors}
        self._names = {key: match[1] for key, match in found.items() if match}
        table = next((key for key, leaf in self._names.items() if leaf == _TABLE), None)
        if table is None:
            raise UsageError(
                f"the file holds no {_MODULE}.{_TABLE}: it is no prefix of P-Tuning v2",
                where=self._checkpoint.label,
                cure=Wording("leave out {prefix}; a LoRA file is an {adapter}", prefix=..., adapter=...),
            )
        others = [key for key, match in found.items() if not match]
        if others:
            raise UsageError(
                f"the file holds {len(others)} tensors beside the prefix, such as {others[0]}",
                where=self._checkpoint.label,
                cure="where it holds the whole model, load it without its base",
            )
        rows = self._checkpoint.tensors[table].shape[0]
        projected = any(leaf.startswith("trans.") for leaf in self._names.values())
        self.settings = {"pre_seq_len": rows, "prefix_projection": projected}

    def on(self, checkpoint: Checkpoint, config: Any) -> tuple[Checkpoint, Any]:
        """Return the base and the caller's config with the prefix's two settings: its length, and its projection."""
        base = replace(checkpoint, config={**(checkpoint.config or {}), **self.settings})
        if config is None:
            return base, None
        changed = copy.copy(config)
        for name, value in self.settings.items():
            if isinstance(changed, dict):
                changed[name] = value
            else:
                setattr(changed, name, value)
        return base, changed

    def judge(self, shell: Shell, target: Target) -> None:
        """Raise where the prefix does not fit the model that was built; the target counts its bytes."""
        paths = [path for path, _ in shell.model.named_modules() if path.rpartition(".")[2] == _MODULE]
        if len(paths) != 1:
            raise UsageError(
                f"{type(shell.model).__name__} has {len(paths)} modules {_MODULE} with pre_seq_len="
                f"{self.settings['pre_seq_len']} in its config",
                where=keyword("prefix", str(self._checkpoint.label)),
                cure="use the class that the prefix was trained with",
            )
        self._path = paths[0]
        report = check(shell.model.get_submodule(self._path), self._checkpoint, key_map=self._names)
        if report.faults:
            raise mismatch(report, report.faults)
        target.beside += self._checkpoint.nbytes

    def allowed(self, given: Patterns) -> list[str]:
        """Return what may be missing of the base: what the caller allows, and what the prefix brings."""
        mine = [f"{self._path}.{leaf}" for leaf in self._names.values()]
        return [*([given] if isinstance(given, str) else given), *mine]

    def finish(self, shell: Shell, target: Target, report: Report) -> None:
        """Fill the prefix in, and say so in the report of the load."""
        module = shell.model.get_submodule(self._path)
        own = fill(module, self._checkpoint, key_map=self._names, target=target, progress=False)
        brought = {f"{self._path}.{leaf}" for leaf in self._names.values()}
        left = {
            reason: [fault for fault in faults if fault.key not in brought]
            for reason, faults in report.allowed.items()
        }
        report.allowed = {reason: faults for reason, faults in left.items() if faults}
        report.loaded += own.loaded
        report.nbytes += own.nbytes
        report.notes.append(
            f"{self._path} is a prefix of {self.settings['pre_seq_len']} tokens, from {self._checkpoint.label}"
        )
