"""UnnamedClass: a model class that lies in a repo's files, and that no `auto_map` names. Runs none of the code."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from posixpath import basename
from typing import TYPE_CHECKING, Any

from shardload.errors import ShardloadError
from shardload.remote_code.auto_map import ClassRef, architectures, model_entries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.importer import RepoCode

_MOST_FILES = 30
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class UnnamedClass:
    """A class of the repo: the file that defines it, and the `auto_map` that would name it and its config class."""

    file: str
    name: str
    auto_map: dict[str, str]

    @property
    def entry(self) -> str:
        """The entry for config.json, as JSON."""
        return f'"auto_map": {json.dumps(self.auto_map)}'


def find_unnamed(source: Source, wanted: Collection[str]) -> UnnamedClass | None:
    """Return the first class of these names that a Python file of the repo defines; None without one.

    Files called modeling_….py are read first, at most 30 files in all.
    """
    config_classes: dict[str, str] = {}
    found: tuple[str, ast.ClassDef] | None = None
    for file, tree in _trees(source):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                config_classes.setdefault(node.name, file)
                if found is None and node.name in wanted:
                    found = file, node
    if found is None:
        return None
    file, cls = found
    auto_map = {"AutoModel": f"{_module(file)}.{cls.name}"}
    config = _config_class(cls)
    if config in config_classes:
        auto_map = {"AutoConfig": f"{_module(config_classes[config])}.{config}", **auto_map}
    return UnnamedClass(file, cls.name, auto_map)


def unnamed_entry(
    code: RepoCode, config_json: Mapping[str, Any] | None, chosen: ClassRef
) -> tuple[str, ClassRef] | None:
    """Return the entry of `auto_map` that would name the class that `architectures` names and `auto_map` lacks.

    None where no file of the code that was consented to defines it.
    """
    listed = {ref.name for ref in model_entries(config_json).values()}
    here = find_unnamed(code.source, set(architectures(config_json)) - listed)
    if here is None or all(file.name != here.file for file in code.code.files):
        return None
    purpose = here.name.find("For")
    entry = f"AutoModel{here.name[purpose:]}" if purpose >= 0 else "AutoModel"
    return entry, ClassRef(_module(here.file), here.name, chosen.repo)


def _trees(source: Source) -> Iterator[tuple[str, ast.Module]]:
    names = [name for name in source.names() if name.endswith(".py")]
    names.sort(key=lambda name: (not basename(name).startswith(("modeling", "configuration")), name))
    for name in names[:_MOST_FILES]:
        try:
            file = source.open(name)
            if file.size <= _MOST_BYTES:
                yield name, ast.parse(file.read_at(0, file.size))
        except (SyntaxError, ValueError, OSError, RecursionError, ShardloadError):
            continue


def _config_class(cls: ast.ClassDef) -> str:
    """Return the name that the class gives as its `config_class`, "" without one."""
    for node in cls.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "config_class" for target in targets):
            return getattr(getattr(node, "value", None), "id", "")
    return ""


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
