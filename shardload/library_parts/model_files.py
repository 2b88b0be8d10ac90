"""The index of the installed transformers' `models` folder: which file defines a name, which files a file needs.

It is made of the files' text and syntax trees; nothing is run. Most names are found in the folder whose name they begin
with, and only others are looked for in all folders.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from typing import TYPE_CHECKING

from shardload.errors import CorruptError
from shardload.library_parts.release import Release, installed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_KINDS = ("modeling_", "configuration_", "generation_")
_DEFINITION = re.compile(rb"(?:class|def) \w+[ (:\[]|\w+(?: = |: )")
_ALL = re.compile(rb"^__all__ = (\[[^\]]*\])", re.MULTILINE)
_OTHER_FRAMEWORKS = ("modeling_flax_", "modeling_tf_")  # until 4.57
_first_read: dict[Path, str] = {}  # the SHA-256 of what was read of each file


def home_of(name: str, within: str = "") -> str | None:
    """Return the module ("models.llama.modeling_llama") that defines a public class or function; None without one.

    `within` is "" for a name of the top module, else a folder of one model ("models.llama") or a file's module.
    """
    release = installed()
    return _home_of(release, name, within) if release is not None else None


@functools.lru_cache(maxsize=4096)
def _home_of(release: Release, name: str, within: str) -> str | None:
    parts = within.split(".") if within else []
    if len(parts) == 3:
        return within if is_model_file(within) and defines(within, name) else None
    if len(parts) == 2:
        return next((module for module in _modules(release, parts[1]) if defines(module, name)), None)
    if parts or not name[:1].isupper():
        return None  # the top module has classes only
    wanted = f"class {name}".encode()
    for folder in _likely_first(release, name):
        for module in _modules(release, folder):
            if wanted in read(module) and defines(module, name) and _is_exported(module, name):
                return module
    return None


def is_model_file(module: str) -> bool:
    """Return whether a dotted name is that of a model file of the installed release."""
    parts = module.split(".")
    release = installed()
    named = len(parts) == 3 and parts[0] == "models" and _runs(parts[2])
    return named and release is not None and release.file(module) is not None


def _runs(stem: str) -> bool:
    return stem.startswith(_KINDS) and not stem.startswith(_OTHER_FRAMEWORKS)


def model_modules() -> tuple[str, ...]:
    """Return the modules of all model files of the installed release, those of the auto classes excepted."""
    release = installed()
    if release is None:
        return ()
    folders = (folder for folder in _folders(release) if folder != "auto")
    return tuple(module for folder in folders for module in _modules(release, folder))


@functools.lru_cache(maxsize=256)
def read(module: str) -> bytes:
    """Return the bytes of a file of the installed release: what is hashed is what runs.

    Raises CorruptError where the file is not what this process read of it before.
    """
    release = installed()
    path = release.file(module) if release is not None else None
    assert path is not None, module
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if _first_read.setdefault(path, sha256) != sha256:
        raise CorruptError(
            "a file of the installed transformers has changed since this process read it first",
            where=str(path),
            cure="start the process again",
        )
    return content


@functools.lru_cache(maxsize=4096)
def defines(module: str, name: str) -> bool:
    """Return whether a file of the installed release is there and defines a name at its top level.

    A syntax tree, which takes a tenth of a second, is made only where the line may lie inside a text.
    """
    release = installed()
    if release is None or release.file(module) is None:
        return False
    text, word = read(module), re.escape(name).encode()
    for found in re.finditer(rb"^(?:class |def )?" + word + rb"\b(?=[ (:=\[])", text, re.MULTILINE):
        before = text[: found.start()]
        if before.count(b'"""') % 2 or before.count(b"'''") % 2:
            return name in _names(module)
        if _DEFINITION.match(text, found.start()):
            return True
    return False


@functools.lru_cache(maxsize=512)
def _names(module: str) -> frozenset[str]:
    found: set[str] = set()
    for node in _tree(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


@functools.lru_cache(maxsize=8)
def _tree(module: str) -> ast.Module:
    return ast.parse(read(module))


def _is_exported(module: str, name: str) -> bool:
    """Whether the file's `__all__` has the name; files of releases without that list export every class."""
    listed = _ALL.search(read(module))
    return listed is None or name in ast.literal_eval(listed[1].decode())


@functools.lru_cache(maxsize=2)
def _folders(release: Release) -> tuple[str, ...]:
    return tuple(sorted(each.name for each in (release.folder / "models").iterdir() if each.is_dir()))


def _modules(release: Release, folder: str) -> list[str]:
    """Return the modules of one model's files, code of models before configurations."""
    stems = (path.stem for path in sorted((release.folder / "models" / folder).glob("*.py")))
    kept = [
        (stem, place)
        for stem in stems
        if _runs(stem)
        for place, kind in enumerate(_KINDS)
        if stem.startswith(kind)
    ]
    return [f"models.{folder}.{stem}" for stem, _ in sorted(kept, key=lambda each: each[1])]


def _likely_first(release: Release, name: str) -> Iterator[str]:
    """Yield all folders of models, those whose names the class's name begins with first, the longest of these first."""
    small = name.lower()
    folders = _folders(release)
    likely = [folder for folder in folders if small.startswith(folder.replace("_", ""))]
    yield from sorted(likely, key=len, reverse=True)
    yield from (folder for folder in folders if folder not in likely and folder != "auto")


def needed_files(modules: Iterable[str]) -> tuple[str, ...]:
    """Return these model files' modules and those of all model files that they import."""
    waiting, found = [module for module in modules if is_model_file(module)], set[str]()
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [other for other in _imported(module) if is_model_file(other)]
    return tuple(sorted(found))


@functools.lru_cache(maxsize=512)
def _imported(module: str) -> tuple[str, ...]:
    package = module.split(".")[:-1]
    found = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package):
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module.split(".") if node.module else ())])
            found += [target, *(f"{target}.{alias.name}" for alias in node.names)]
    return tuple(found)


def fingerprint(modules: Iterable[str]) -> bytes:
    """Return a hash over the installed release and the bytes of these model files and of those that they import."""
    release = installed()
    digest = hashlib.sha256((release.name if release else "").encode())
    for module in needed_files(modules):
        content = read(module)
        digest.update(f"\0{module}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.digest()
