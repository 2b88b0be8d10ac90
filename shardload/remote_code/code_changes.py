"""What changed in a file of code since it was approved, found by comparing hashes of its lines."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

_LONGEST = 20_000  # lines: a diff takes quadratic time at worst
_SHOWN = 40
_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Hunk:
    """A run of lines that differ. `at` is the first line's number now, `was_at` in the approved file (from 1).

    `removed` counts lines of the approved file, whose text the lock does not hold; `added` are lines as they are now.
    """

    at: int
    was_at: int
    removed: int
    added: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that differs from the approved one; `is_new` when no file of that name was approved."""

    name: str
    is_new: bool
    hunks: tuple[Hunk, ...] = ()

    def lines(self, limit: int = _SHOWN) -> list[str]:
        """Return the change as lines of text for people, at most `limit` of them."""
        if self.is_new:
            return [f"{self.name}: was not there when the code was approved"]
        added, removed = sum(len(h.added) for h in self.hunks), sum(h.removed for h in self.hunks)
        found = [f"{self.name}: {added} lines added, {removed} removed"]
        for hunk in self.hunks:
            found.append(f"  @@ line {hunk.at} (was {hunk.was_at}), {hunk.removed} approved lines are gone")
            found += [f"  + {line[:_WIDTH]}" for line in hunk.added]
        if len(found) > limit:
            found = [*found[:limit], f"  … and {len(found) - limit} more lines"]
        return found


def change_of(name: str, before: tuple[str, ...] | None, now: tuple[str, ...], content: bytes) -> FileChange:
    """Return how a file changed. `before` and `now` are hashes of its lines, approved (None: not there) and present.

    For a file of more than 20,000 lines only the fact that it changed is returned.
    """
    if before is None:
        return FileChange(name, is_new=True)
    if max(len(before), len(now)) > _LONGEST:
        return FileChange(name, is_new=False)
    text = content.decode("utf-8", errors="replace").split("\n")
    matcher = SequenceMatcher(None, before, now, autojunk=False)
    hunks = tuple(
        Hunk(j1 + 1, i1 + 1, i2 - i1, tuple(text[j1:j2]))
        for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        if tag != "equal"
    )
    return FileChange(name, is_new=False, hunks=hunks)
