"""ModuleIndex: a model's modules by path, and the look-up of an adapter file's module paths in it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from shardload.adapters.adapter import canonical, listing
from shardload.adapters.layers import LORA_PARTS, LoraLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from shardload.adapters.replication import Replication

_PROBES = 8
_MOST_PREFIXES = 64


@dataclass(frozen=True)
class Resolution:
    """The model's path for each path of the file; paths that the model lacks are absent from `found`.

    `note` says how the paths were changed, if they were; `ambiguous` names the choices when there are several.
    """

    found: dict[str, str]
    note: str | None = None
    ambiguous: str | None = None


class ModuleIndex:
    """A model's modules by path, shared modules under each of their paths; parts of LoRA layers left out.

    With a replication its longer stack of layers replaces the model's.
    """

    def __init__(self, model: nn.Module, replication: Replication | None = None) -> None:
        self._replication = replication
        self.modules: dict[str, nn.Module] = {}
        self.parents: dict[str, nn.Module] = {}
        self._add("", model)
        self._clean: dict[str, str] = {}
        for path in self.modules:
            # A path without wrapper segments wins over one that becomes equal to it.
            if canonical(path) == path or canonical(path) not in self._clean:
                self._clean[canonical(path)] = path
        self._bare: dict[str, str] = {}
        for path in self.modules:
            self._bare.setdefault(_without_module(canonical(path)), path)

    def _add(self, path: str, module: nn.Module) -> None:
        self.modules[path] = module
        for name, child in module._modules.items():
            if child is None or (isinstance(module, LoraLayer) and name in LORA_PARTS):
                continue
            inner = f"{path}.{name}" if path else name
            found = self._replication
            if found is not None and module is found.owner and name == found.attribute:
                child = found.own  # noqa: PLW2901 - the longer stack
            self.parents[inner] = module
            self._add(inner, child)

    def at(self, path: str) -> str | None:
        """Return the model's path for a path without wrapper segments, or None."""
        return self._clean.get(path)

    def resolve(self, paths: Iterable[str], beside: Iterable[str] = ()) -> Resolution:
        """Find all paths of one file in the model, by one rule for all of them.

        Tried in turn: the path as it is; without `module` segments; with one prefix added to, or taken from,
        every path. Two prefixes that both fit are ambiguous. When no rule fits every path, the rule that fits
        most is used, and the paths that it does not find are left out. `beside` are further paths to look up,
        which the model may lack.
        """
        wanted = list(dict.fromkeys((*paths, *beside)))
        plain = Resolution(_find(wanted, self._clean.get))
        found = _find(wanted, lambda path: self._bare.get(_without_module(path)))
        bare = Resolution(found, "without `module` segments")
        best = plain if len(plain.found) >= len(bare.found) else bare
        if len(best.found) == len(wanted):
            return best
        shifted = self._shifted(wanted, len(best.found))
        return shifted or best

    def _shifted(self, wanted: list[str], beat: int) -> Resolution | None:
        """Return the one prefix that finds more than `beat` paths, or the ambiguity of several, or None."""
        results: list[tuple[str, dict[str, str]]] = []
        for note, move in self._moves(wanted):
            found = _find(wanted, move)
            if len(found) > beat:
                results.append((note, found))
        if not results:
            return None
        most = max(len(found) for _, found in results)
        winners = [(note, found) for note, found in results if len(found) == most]
        note, found = winners[0]
        if any(other != found for _, other in winners[1:]):
            return Resolution({}, ambiguous=listing([note for note, _ in winners]))
        return Resolution(found, note)

    def _moves(self, wanted: Sequence[str]) -> list[tuple[str, Callable[[str], str | None]]]:
        """Return the prefixes that fit some of the first few paths, each with the function that applies it."""
        added: dict[str, None] = {}
        removed: dict[str, None] = {}
        for path in wanted[:_PROBES]:
            if not path:
                continue
            tail = "." + path
            added.update((known[: -len(tail)], None) for known in self._clean if known.endswith(tail))
            segments = path.split(".")
            for cut in range(1, len(segments)):
                if ".".join(segments[cut:]) in self._clean:
                    removed[".".join(segments[:cut])] = None
        moves: list[tuple[str, Callable[[str], str | None]]] = [
            (f"with `{prefix}.` before every path", self._adder(prefix))
            for prefix in list(added)[:_MOST_PREFIXES]
        ]
        moves += [(f"without `{prefix}.` before every path", self._remover(prefix)) for prefix in removed]
        return moves

    def _adder(self, prefix: str) -> Callable[[str], str | None]:
        return lambda path: self._clean.get(f"{prefix}.{path}" if path else prefix)

    def _remover(self, prefix: str) -> Callable[[str], str | None]:
        return lambda path: (
            self._clean.get(path[len(prefix) + 1 :]) if path.startswith(prefix + ".") else None
        )

    def nearest(self, path: str) -> str | None:
        """Return the module path that looks most like `path`: first among modules of the same last name."""
        path = canonical(path)
        last = path.rpartition(".")[2]
        same = [known for known in self.modules if known.rpartition(".")[2] == last]
        for pool in (same, list(self.modules)):
            close = difflib.get_close_matches(path, pool, n=1, cutoff=0.5)
            if close:
                return close[0]
        return None

    def linears(self, names: tuple[str, ...]) -> list[str]:
        """Return the paths of the linear layers whose path is one of these names, or ends with one after a dot."""
        ends = tuple(f".{name}" for name in names)
        return [
            path
            for path, module in self.modules.items()
            if (path in names or path.endswith(ends)) and isinstance(module, nn.Linear)
        ]

    def aliases(self) -> dict[int, list[str]]:
        """Return the paths of each module that has several, by the module's id."""
        paths: dict[int, list[str]] = {}
        for path, module in self.modules.items():
            paths.setdefault(id(module), []).append(path)
        return {key: several for key, several in paths.items() if len(several) > 1}


def _find(wanted: Iterable[str], look: Callable[[str], str | None]) -> dict[str, str]:
    found = ((path, look(path)) for path in wanted)
    return {path: place for path, place in found if place is not None}


def _without_module(path: str) -> str:
    return ".".join(segment for segment in path.split(".") if segment != "module")


def tensor_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return a module's own parameter or buffer, or None."""
    parameter = module._parameters.get(name)
    return parameter if parameter is not None else module._buffers.get(name)


def output_head(model: nn.Module) -> object:
    """Return the model's output embeddings, or None."""
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None
