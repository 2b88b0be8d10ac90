"""asked_parts: the model files of the installed transformers that a repo's code leads to. Runs nothing."""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING

from shardload.library_parts.model_files import fingerprint, home_of, is_model_file, needed_files
from shardload.transformers_shim.front import has_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def asked_parts(contents: Iterable[bytes]) -> tuple[str, ...]:
    """Return the modules ("models.llama.modeling_llama") of the library's files that would run beside code.

    They are those that its import statements name, and all that these import. Classes that the auto classes find by a
    config's `model_type` are known only when the code runs.
    """
    return needed_files({module for content in contents for module in _asked(content)})


def fingerprint_of(contents: Iterable[bytes]) -> bytes:
    """Return a hash over the installed release and its files that would run beside code."""
    return fingerprint({module for content in contents for module in _asked(content)})


@functools.lru_cache(maxsize=64)
def _asked(content: bytes) -> frozenset[str]:
    return frozenset(_homes(ast.parse(content)))


def _homes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and str(node.module).startswith("transformers")
        ):
            yield from _homes_of(str(node.module).partition(".")[2], [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                inside = alias.name.removeprefix("transformers.")
                if is_model_file(inside):
                    yield inside
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "transformers":
            yield from filter(None, [part_of("", node.attr)])


def _homes_of(inside: str, names: list[str]) -> Iterator[str]:
    if is_model_file(inside):
        yield inside
        return
    for name in names:
        home = part_of(inside, name)
        if home:
            yield home


def part_of(inside: str, name: str) -> str | None:
    """Return the library's file that serves a name of a module ("" is transformers) as a part; None without one."""
    own = f"{inside}.{name}" if inside else name
    if is_model_file(own):
        return own
    if inside.startswith("models.") or (not inside and not has_name(name)):
        return home_of(name, inside)
    return None
