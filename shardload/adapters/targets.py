"""Targets: the modules that a fresh LoRA goes on, by names, a regular expression, or all linear layers, as in PEFT."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.adapters.adapter import canonical, listing
from shardload.adapters.layers import kind_of
from shardload.adapters.layers.transposed import Transposed
from shardload.adapters.module_index import output_head
from shardload.adapters.patterns import is_risky
from shardload.errors import UsageError
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shardload.adapters.module_index import ModuleIndex

ALL_LINEAR = "all-linear"
_HEADS = ("classifier", "score")
_CONV1D = Transposed()


@dataclass(frozen=True)
class Targets:
    """The settings that say where a fresh adapter goes; the names in PEFT's config are in brackets.

    `targets` (target_modules) and `exclude` (exclude_modules) are names, each a whole path or the end of one after a
    dot; or one regular expression that matches whole paths; `targets` may be "all-linear". `layers`
    (layers_to_transform) are layer indices: the first number in a path, or the number after a name of
    `layers_pattern`. `whole` (modules_to_save) are ends of paths; nothing at or below them is targeted.
    """

    targets: str | tuple[str, ...]
    exclude: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def choose(self, model: nn.Module, index: ModuleIndex) -> list[str]:
        """Return the paths of the targeted modules, in the model's order.

        Raises UsageError, with the nearest modules, when nothing is targeted, and for every name, index or pattern
        that chooses nothing.
        """
        paths = {path: canonical(path) for path in index.modules if path}
        faults: list[str] = []
        wanted = self._wanted(model, index, paths, faults)
        among = set(self._kept([paths[path] for path in wanted]))
        kept = [path for path in wanted if paths[path] in among]
        faults += self._idle(paths.values(), wanted, paths)
        if not kept and not faults:
            faults.append("all targeted modules are excluded")
        if faults:
            raise UsageError(
                "; ".join(faults),
                where=f"the modules that take a LoRA: {listing(collapse(_adaptable(index)))}",
                cure="pass the last part of a module's name, a regular expression for whole paths, or "
                f'"{ALL_LINEAR}"',
            )
        return kept

    def among(self, paths: Iterable[str]) -> list[str]:
        """Return the paths, given without wrapper segments, that are chosen; "all-linear" chooses none of them.

        An untrusted expression whose match could never end chooses none either.
        """
        patterns = [one for one in (self.targets, self.exclude) if isinstance(one, str)]
        if self.targets == ALL_LINEAR or any(map(is_risky, patterns)):
            return []
        matches = _matcher(self.targets)
        found = [path for path in paths if matches(path)]
        if self.layers:
            found = [path for path in found if self._layer(path) in self.layers]
        return self._kept(found)

    def _kept(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that are neither excluded nor in modules_to_save."""
        excluded = _matcher(self.exclude)
        saved = re.compile(rf"(?:^|.*\.)(?:{'|'.join(self.whole)})(?:$|\..*)") if self.whole else None
        return [path for path in paths if not excluded(path) and not (saved and saved.match(path))]

    def _wanted(
        self, model: nn.Module, index: ModuleIndex, paths: dict[str, str], faults: list[str]
    ) -> list[str]:
        if isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR:
            heads = _heads(model)
            found = [
                path
                for path, module in index.modules.items()
                if path
                and (isinstance(module, nn.Linear) or _CONV1D.fits(module))
                and not isinstance(index.parents.get(path), nn.MultiheadAttention)
                and id(module) not in heads
            ]
            if not found:
                faults.append("the model has no linear layers")
            return found
        matches = _matcher(self.targets)
        found = [path for path, clean in paths.items() if matches(clean)]
        if isinstance(self.targets, str):
            if not found:
                faults.append(f"the regular expression {self.targets!r} matches no module's whole path")
            return found
        faults += [
            f"{target!r} matches no module{_nearest(target, index)}"
            for target in self.targets
            if not any(map(_matcher((target,)), paths.values()))
        ]
        if not self.layers:
            return found
        numbered = {path: self._layer(paths[path]) for path in found}
        absent = [number for number in self.layers if number not in numbered.values()]
        if absent and found:
            faults.append(f"layers {listing(list(map(str, absent)))} have no targeted module")
        return [path for path, number in numbered.items() if number in self.layers]

    def _layer(self, path: str) -> int | None:
        """Return the index of the layer that a module belongs to: the first number, as PEFT finds it."""
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern] or [
            r".*?\.[^.]*\.(\d+)\."
        ]
        match = next((match for pattern in patterns if (match := re.match(pattern, path))), None)
        return None if match is None else int(match[1])

    def _idle(self, paths: Iterable[str], wanted: list[str], clean: dict[str, str]) -> list[str]:
        """Return the faults of exclusions and modules_to_save that choose nothing."""
        names = list(paths)
        exclusions = [self.exclude] if isinstance(self.exclude, str) else [(name,) for name in self.exclude]
        faults = [
            f"the exclusion {exclude if isinstance(exclude, str) else exclude[0]!r} matches no targeted module"
            for exclude in exclusions
            if wanted and not any(_matcher(exclude)(clean[path]) for path in wanted)
        ]
        faults += [
            f"modules_to_save names {name!r}, which is no module"
            for name in self.whole
            if not any(path.endswith(name) for path in names)
        ]
        return faults


def targets_of(config: Mapping[str, Any]) -> Targets:
    """Return the targets of an adapter_config.json."""
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    return Targets(
        targets=_names(config.get("target_modules")),
        exclude=_names(config.get("exclude_modules")),
        layers=(layers,) if isinstance(layers, int) else tuple(layers or ()),
        layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern or ()),
        whole=tuple(config.get("modules_to_save") or ()),
    )


def _names(given: Any) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else tuple(given or ())


def _matcher(names: str | tuple[str, ...]) -> Callable[[str], bool]:
    if isinstance(names, str):
        regex = re.compile(names)
        return lambda path: regex.fullmatch(path) is not None
    whole, ends = frozenset(names), tuple(f".{name}" for name in names)
    return lambda path: path in whole or path.endswith(ends)


def _heads(model: nn.Module) -> set[int]:
    """Return the ids of the modules that PEFT takes for the output head, which "all-linear" leaves out."""
    head = output_head(model)
    if head is not None:
        return {id(head)}
    if type(model).__name__.endswith("ForSequenceClassification"):
        return {id(getattr(model, name)) for name in _HEADS if hasattr(model, name)}
    return set()


def _adaptable(index: ModuleIndex) -> list[str]:
    return [path for path, module in index.modules.items() if path and kind_of(module) is not None]


def _nearest(target: str, index: ModuleIndex) -> str:
    """Return "; nearest: …" with the ends of paths that look most like a name, and the modules with these ends."""
    depth = target.count(".") + 1
    ends: dict[str, list[str]] = {}
    for path in _adaptable(index):
        ends.setdefault(".".join(canonical(path).split(".")[-depth:]), []).append(path)
    close = difflib.get_close_matches(target, ends, n=2, cutoff=0.4)
    if not close:
        return ""
    return "; nearest: " + ", ".join(f"{end!r} ({listing(collapse(ends[end]), 2)})" for end in close)
