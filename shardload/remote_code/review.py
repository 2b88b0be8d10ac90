"""review_code: the code that loading a repo would run, for a person who is asked to trust it. Runs none of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.errors import RemoteCodeError
from shardload.remote_code.code import Code, collect, has_file
from shardload.remote_code.importer import all_refs, is_own, other_source
from shardload.remote_code.processor import processor_refs
from shardload.remote_code.reach import Contents, contents_of
from shardload.remote_code.tokenizer import tokenizer_ref
from shardload.remote_code.trust_lock import TrustLock
from shardload.where import UNTRUSTED, CodeTrust

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.auto_map import ClassRef
    from shardload.remote_code.code import CodeFile
    from shardload.remote_code.code_changes import FileChange


@dataclass(frozen=True)
class CodeReview:
    """The code of one source: its files and what each of them imports and reaches.

    `source` is the repo itself, or another repo that `auto_map` takes code from; `classes` are the names of
    `auto_map` that lead there.
    """

    source: Source
    classes: tuple[str, ...]
    code: Code
    contents: tuple[tuple[CodeFile, Contents], ...]

    def approve(self, path: Path) -> TrustLock:
        """Approve exactly these bytes in a lock file."""
        return TrustLock.approve(path, self.source, self.code)

    def changes(self, lock: TrustLock) -> tuple[FileChange, ...] | None:
        """Return the differences from what a lock approves: () for none, None where it has no approval."""
        if lock.approves(self.source, self.code):
            return ()
        nearest = lock.nearest(self.source, self.code)
        # No change: these bytes are listed in a file that may have come with them, which approves nothing.
        return (nearest.changes(self.code) or None) if nearest else None


def review_code(
    source: Source, config_json: Mapping[str, Any] | None, trust: CodeTrust = UNTRUSTED
) -> list[CodeReview]:
    """Return the code that a repo's config, model, tokenizer and processor classes need, one review for each source.

    Code of other repos is fetched for review: at `trust.code_revision`, or else at the present commit of `main`.
    Nothing is run. Raises RemoteCodeError where a file is not valid Python, UnsafeError, NotFoundError.
    """
    tokenizer = tokenizer_ref(source, config_json)
    refs = [
        *all_refs(source, config_json),
        *([] if tokenizer is None else [tokenizer]),
        *processor_refs(source, config_json).values(),
    ]
    own = [ref for ref in refs if is_own(ref, source)]
    found = [_review(source, own)] if own else []
    others: dict[str, list[ClassRef]] = {}
    for ref in refs:
        if not is_own(ref, source):
            others.setdefault(str(ref.repo), []).append(ref)
    return [*found, *(_review(other_source(refs[0], trust), refs) for refs in others.values())]


def _review(source: Source, refs: Iterable[ClassRef]) -> CodeReview:
    classes = tuple(dict.fromkeys(str(ref) for ref in refs))
    names = frozenset(source.names())
    modules = sorted({ref.module for ref in refs})
    # An entry whose file is not in the repo runs nothing; loading refuses it where it is the chosen one.
    code = collect(source, [m for m in modules if has_file(m, names)] or modules)
    return CodeReview(source, classes, code, tuple((file, _contents(file)) for file in code.files))


def _contents(file: CodeFile) -> Contents:
    try:
        return contents_of(file.content, file.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RemoteCodeError(
            f"the repo's code can't be parsed, so it can't be reviewed:  {error}", where=str(file.path)
        ) from error
