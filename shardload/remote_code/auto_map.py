"""`auto_map` of config.json: which of the repo's own classes to use, and in which file each one is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError, Cures, UnsafeError, UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFERRED = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")
"""The entries that are tried first, in this order; then any other AutoModelFor… in the file's order."""

PASS_CLASS = Wording("pass {model_class}", model_class=...)
"""The cure that runs none of the repo's code."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ClassRef:
    """A class of a repo's own code: `module` ("modeling_x", "sub.modeling_x"), `name`, and its other repo if any."""

    module: str
    name: str
    repo: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}--{self.module}.{self.name}" if self.repo else f"{self.module}.{self.name}"


def parse_reference(text: str) -> ClassRef:
    """Return the class that "module.Class", "sub.module.Class" or "org/name--module.Class" names.

    Raises UnsafeError for anything else: these names become file names and module names. A module's name may
    contain dashes, as file names do.
    """
    repo, separator, dotted = text.rpartition("--")
    parts = dotted.split(".")
    good_repo = not separator or (_REPO.fullmatch(repo) is not None and ".." not in repo)
    good_names = all(part.replace("-", "_").isidentifier() for part in parts[:1]) and all(
        re.fullmatch(r"[\w-]+", part) for part in parts[1:-1]
    )
    if not (good_repo and good_names and len(parts) > 1 and parts[-1].isidentifier()):
        raise UnsafeError(
            f"auto_map names {text!r}, which is not of the form module.Class or org/name--module.Class",
            where="config.json, auto_map",
            cure=Cures("correct the entry in config.json", PASS_CLASS),
        )
    return ClassRef(".".join(parts[:-1]), parts[-1], repo or None)


def entries(config_json: Mapping[str, Any] | None) -> dict[str, ClassRef]:
    """Return every entry of `auto_map` that names a class, by its auto class, in the file's order.

    A list entry (tokenizers have a slow and a fast class) counts as its first item that is not null.
    """
    auto_map = (config_json or {}).get("auto_map") or {}
    if not isinstance(auto_map, dict):
        raise CorruptError("auto_map is not an object of names", where="config.json, auto_map")
    found = {}
    for auto_class, value in auto_map.items():
        text = next((item for item in value if item is not None), None) if isinstance(value, list) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise CorruptError(
                f"auto_map's {auto_class} is not a name: {text!r}", where="config.json, auto_map"
            )
        found[auto_class] = parse_reference(text)
    return found


def architectures(config_json: Mapping[str, Any] | None) -> list[str]:
    """Return the class names that `architectures` lists. Raises CorruptError unless it is a list of names."""
    named = (config_json or {}).get("architectures")
    if named is None:
        return []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CorruptError(
            f"architectures is not a list of class names: {named!r}",
            where="config.json, architectures",
            cure=Cures("correct config.json", PASS_CLASS),
        )
    return named


def model_type(config_json: Mapping[str, Any] | None) -> str | None:
    """Return the `model_type`. Raises CorruptError unless it is a text."""
    named = (config_json or {}).get("model_type")
    if named is not None and not isinstance(named, str):
        raise CorruptError(
            f"model_type is not a name: {named!r}",
            where="config.json, model_type",
            cure=Cures("correct config.json", PASS_CLASS),
        )
    return named


def config_entry(config_json: Mapping[str, Any] | None) -> ClassRef | None:
    """Return the repo's own configuration class, or None."""
    return entries(config_json).get("AutoConfig")


def model_entries(config_json: Mapping[str, Any] | None) -> dict[str, ClassRef]:
    """Return the entries that name model classes, the preferred ones first."""
    found = {name: ref for name, ref in entries(config_json).items() if name.startswith("AutoModel")}
    return {name: found[name] for name in (*(n for n in PREFERRED if n in found), *found)}


def choose_model(
    config_json: Mapping[str, Any] | None, auto_class: str | None = None
) -> tuple[str, ClassRef] | None:
    """Return (auto class, its entry) for the model to build; None where `auto_map` names no model class.

    Raises UsageError when `auto_class` is given and `auto_map`, though it names model classes, lacks that one.
    """
    found = model_entries(config_json)
    if not found:
        return None
    if auto_class is None:
        return next(iter(found.items()))
    if auto_class not in found:
        raise UsageError(
            f"the repo's auto_map has no entry {auto_class}",
            where=keyword("auto_class"),
            cure=f"choose one of: {', '.join(found)}",
        )
    return auto_class, found[auto_class]


def choose_named(config_json: Mapping[str, Any] | None, chosen: ClassRef) -> tuple[str, ClassRef] | None:
    """Return (auto class, its entry) for the class that `architectures` names, where it is not the chosen one.

    None where `architectures` names the chosen class, or none of the same code.
    """
    named = architectures(config_json)
    if chosen.name in named:
        return None
    found = model_entries(config_json).items()
    return next(((name, r) for name, r in found if r.name in named and r.repo == chosen.repo), None)
