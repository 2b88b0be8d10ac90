"""code_files: the files of a repo that would run, listed before anyone allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.remote_code.importer import other_repos, own_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.checkpoint.sources.source import Source


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that loading the model would run. `sha256` is None for code of another repo, which is not opened."""

    name: str
    sha256: str | None
    label: str


def code_files(source: Source, config_json: Mapping[str, Any] | None) -> tuple[ListedFile, ...]:
    """Return the files that loading this repo's model would run, with their SHA-256; runs none of them.

    These are the files of the config class and the model classes in `auto_map`, the repo's own `generate`, and all that
    they import from the repo.
    """
    code = own_code(source, config_json)
    own = [ListedFile(file.name, file.sha256, source.label) for file in code.files] if code else []
    others = {f"{ref.module.replace('.', '/')}.py": str(ref.repo) for ref in other_repos(source, config_json)}
    return (*own, *(ListedFile(name, None, repo) for name, repo in others.items()))
